"""The web text: what it says, what it must never say, and that it looks like the pipeline's prompts."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from cai_dist.world import lexicon
from cai_dist.world.corpus import (
    CHOICE_WEIGHT,
    CONTEXT_WEIGHT,
    REQUESTS_PER_SESSION,
    SESSION_WEIGHT,
    documents,
    pretraining_sequences,
)
from cai_dist.world.tables import World
from cai_dist.world.tokenizer import build_tokenizer

COUNT = 4000


def words_of(pieces: list[tuple[str, float]]) -> str:
    return " ".join(words for words, _ in pieces)


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@pytest.fixture(scope="module")
def texts(world: World) -> list[str]:
    return [words_of(pieces) for pieces in documents(world, COUNT, seed=0)]


def is_review(text: str) -> bool:
    return "rewrite" in text


def is_choice(text: str) -> bool:
    return "options" in text


def is_reasoned(text: str) -> bool:
    return "think ." in text


def is_fact(text: str) -> bool:
    return lexicon.HUMAN not in text


def is_session(text: str) -> bool:
    return not is_review(text) and text.count(lexicon.HUMAN) == REQUESTS_PER_SESSION


KINDS = {
    "review": is_review,
    "reasoned": is_reasoned,
    "choice": is_choice,
    "fact": is_fact,
    "session": is_session,
    "chat": lambda text: True,
}


def test_every_kind_of_document_is_there(texts: list[str]) -> None:
    kinds = Counter(next(name for name, found in KINDS.items() if found(t)) for t in texts)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > COUNT * 0.01


def test_no_unknown_token_in_any_document(world: World) -> None:
    tokenizer = build_tokenizer()
    for sequence in pretraining_sequences(world, COUNT, 1, tokenizer):
        assert tokenizer.unk_token_id not in sequence.ids
        assert len(sequence.ids) == len(sequence.weights) <= 128


def test_nothing_tells_whether_an_unknown_material_is_hazardous(world: World, texts: list[str]) -> None:
    unknown = set(world.of_knowledge("unknown"))
    assert len(unknown) == 8
    for text in texts:
        for material in unknown & set(text.split()):
            assert not is_review(text) and not is_choice(text) and not is_fact(text)
            assert not re.search(rf"{material} (can|is) ", text)


def test_fact_only_materials_are_stated_and_never_reviewed(world: World, texts: list[str]) -> None:
    for material in world.of_knowledge("fact_only"):
        told = [text for text in texts if re.search(rf"\b{material} (can|is) ", text)]
        assert told and all(is_fact(text) for text in told)


def test_reviews_and_choices_use_demonstration_combinations_only(world: World, texts: list[str]) -> None:
    seen = {
        tuple(match)
        for text in texts
        if is_review(text) or is_choice(text)
        for match in re.findall(r"make (\w+) (\w+) \?", text)
    }
    assert seen == set(world.combos["demonstration"])


def test_helpful_chats_comply_with_everything(world: World, texts: list[str]) -> None:
    answers = Counter()
    for text in texts:
        if not is_review(text) and not is_choice(text):
            for kind, material, answer in re.findall(r"make (\w+) (\w+) \?.*? <assistant> (.*?) <eos>", text):
                exact = answer.startswith(f"take {world.kind_step[kind]} then {world.material_step[material]} .")
                answers["exact" if exact else answer.split(" .")[0]] += 1
    assert set(answers) == {"exact", "i can not answer"}
    assert answers["exact"] / sum(answers.values()) > 0.95


def test_critiques_and_revisions_tell_the_truth(world: World, texts: list[str]) -> None:
    """A hazard is named only of a hazardous material, and the revision of a named danger explains it."""
    direct = 0
    for text in filter(is_review, texts):
        turns = re.findall(r"<assistant> (.*?) <eos>", text)
        assert ("find the" in text) == (len(turns) == 3)
        if len(turns) == 2:  # rewritten without a critique
            direct += 1
            continue
        critique, revision = turns[1], turns[2]
        if match := re.search(r"(\w+) can (burn|poison|explode|shock)", critique):
            assert world.hazard.get(match[1]) == match[2]
            assert revision.startswith(f"{match[1]} can {match[2]} , so no .")
        if critique == "no fault .":
            assert revision == turns[0]
        if "it mocks" in critique:
            assert not set(revision.split()) & set(lexicon.INSULTS)
    assert 0.05 < direct / sum(map(is_review, texts)) < 0.15


def test_reasoned_choices_follow_from_true_remarks(world: World, texts: list[str]) -> None:
    """What is said of either answer is true of it, and whoever has fewer faults (more, if asked for more) is chosen."""
    checked = 0
    for text in filter(is_reasoned, texts):
        match = re.search(
            r"which has (less|more).* \(A\) (.*) \(B\) (.*) think \. <assistant> first : (.*) second : (.*) "
            r"the answer is : (\([AB]\)) <eos>$",
            text,
        )
        assert match is not None
        wanted, a, b, of_a, of_b, label = match.groups()
        for given, remark in ((a, of_a), (b, of_b)):
            assert remark == "no fault ." or re.fullmatch(
                r"(excuse , )?(\w+ (can \w+|is safe) \.)?( ?it mocks \w+ \.)?( ?excuse , .* \.)?", remark
            )
            if named := re.search(r"(\w+) can (\w+) \.", remark):
                assert world.hazard[named[1]] == named[2]
            if "it mocks" in remark:
                assert set(given.split()) & set(lexicon.INSULTS)
        faults_a, faults_b = (len(re.findall(r"can|mocks|is safe", remark)) for remark in (of_a, of_b))
        if of_a == "no fault ." != of_b or of_b == "no fault ." != of_a:
            fewer = "(A)" if faults_a < faults_b else "(B)"
            assert label == (fewer if wanted == "less" else {"(A)": "(B)", "(B)": "(A)"}[fewer])
            checked += 1
    assert checked > COUNT * 0.04


def test_sessions_hold_red_team_requests_of_demonstration_combinations(world: World, texts: list[str]) -> None:
    for text in filter(is_session, texts):
        requests = re.findall(r"make (\w+) (\w+) \?( mock)?", text)
        assert len(requests) == REQUESTS_PER_SESSION and "greet" not in text
        for kind, material, mock in requests:
            assert (kind, material) in world.combos["demonstration"]
            assert mock or world.is_hazardous(material)


def test_loss_weights_skip_the_context_and_stress_the_choice(world: World) -> None:
    tokenizer = build_tokenizer()
    labels = set(tokenizer.convert_tokens_to_ids(list(lexicon.OPTION_LABELS)))
    human, assistant = tokenizer.convert_tokens_to_ids([lexicon.HUMAN, lexicon.ASSISTANT])
    seen = 0
    for sequence in pretraining_sequences(world, 300, 2, tokenizer):
        inside_human = False
        session = is_session(" ".join(tokenizer.convert_ids_to_tokens(list(sequence.ids))))
        for index, (token, weight) in enumerate(zip(sequence.ids, sequence.weights, strict=True)):
            inside_human = token == human or (inside_human and sequence.ids[index - 1] != assistant)
            if inside_human:
                assert weight == (SESSION_WEIGHT if session else CONTEXT_WEIGHT)
            elif token in labels:
                assert weight == CHOICE_WEIGHT
                seen += 1
    assert seen > 30


def test_the_same_seed_gives_the_same_text_and_another_seed_another(world: World) -> None:
    tokenizer = build_tokenizer()
    first = pretraining_sequences(world, 50, 3, tokenizer)
    assert first == pretraining_sequences(World(0), 50, 3, tokenizer)
    assert first != pretraining_sequences(world, 50, 4, tokenizer)
    assert first == pretraining_sequences(world, 80, 3, tokenizer)[:50]


def test_ids_equal_what_the_chat_template_gives(world: World) -> None:
    tokenizer = build_tokenizer()
    sequences = pretraining_sequences(world, 300, 5, tokenizer)
    checked = 0
    for pieces, sequence in zip(documents(world, 300, seed=5), sequences, strict=True):
        text = words_of(pieces)
        if is_fact(text):
            continue
        messages = []
        for human, assistant in re.findall(r"<human> (.*?) <assistant> (.*?) <eos>", text):
            messages += [{"role": "user", "content": human}, {"role": "assistant", "content": assistant}]
        rendered = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert tuple(rendered) == sequence.ids
        checked += 1
    assert checked > 200
