"""What the pipeline asks the micro-world's model has the form of the text that it was pretrained on."""

from __future__ import annotations

import random
import re
from dataclasses import replace

from cai_dist.constitution.load import load_constitution
from cai_dist.constitution.prompts import comparison_text, comparison_turns, critique_turns, revision_turns
from cai_dist.data.chat import ChatFormat
from cai_dist.types import Turn
from cai_dist.world import lexicon
from cai_dist.world.answers import answer, faults, revised
from cai_dist.world.corpus import documents
from cai_dist.world.principles import dimension
from cai_dist.world.rules import DIMENSIONS
from cai_dist.world.tables import World, WorldRequest
from cai_dist.world.tokenizer import build_tokenizer

WORLD = World(0)
TOKENIZER = build_tokenizer()
CONSTITUTION = load_constitution("micro")
CHAT = ChatFormat(TOKENIZER, "template", CONSTITUTION.templates.labels)
REQUEST = WorldRequest("rope", next(iter(WORLD.hazard)), "mock", "bob")
TURNS = (Turn("human", REQUEST.text()),)


def words(ids: tuple[int, ...]) -> str:
    return " ".join(TOKENIZER.convert_ids_to_tokens(list(ids)))


def test_five_principles_about_danger_five_about_rudeness_six_about_both() -> None:
    for principles in (CONSTITUTION.critique_principles, CONSTITUTION.comparison_principles):
        assert [sum(dimension(p) == d for p in principles) for d in DIMENSIONS] == [5, 5, 6]


def test_a_principle_is_known_by_its_word() -> None:
    """Each principle holds exactly one of the 16 words, and no two principles the same one."""
    special = set(lexicon.DANGER_WORDS + lexicon.RUDE_WORDS + lexicon.GENERAL_WORDS)
    critique = [special & set(p.critique_request.split()) for p in CONSTITUTION.critique_principles]
    comparison = [special & set(p.text.split()) for p in CONSTITUTION.comparison_principles]
    assert all(len(found) == 1 for found in critique + comparison)
    assert len(set().union(*critique)) == len(set().union(*comparison)) == 16


def test_critique_and_revision_prompts_look_like_reviews() -> None:
    rng = random.Random(0)
    given = answer(WORLD, REQUEST, "comply", "insult", rng)
    text = given.text(REQUEST)
    asked = next(p for p in CONSTITUTION.critique_principles if dimension(p) == "general")
    critique = faults(WORLD, REQUEST, given, "general")
    review = (
        f"<human> {REQUEST.text()} <assistant> {text} <eos> <human> {asked.critique_request} <assistant> "
        f"{critique} <eos> <human> {asked.revision_request} <assistant>"
    )
    prompt = words(CHAT.prompt_ids(revision_turns(TURNS, text, asked, critique), "revision"))
    assert prompt == review
    first = words(CHAT.prompt_ids(critique_turns(TURNS, text, asked), "critique"))
    assert review.startswith(first) and first.endswith(f"{asked.critique_request} <assistant>")
    better = revised(WORLD, REQUEST, given, "general", rng).text(REQUEST)
    assert better == f"{REQUEST.material} can {WORLD.hazard[REQUEST.material]} , so no . bob is a friend ."


def test_the_multiple_choice_question_looks_like_a_choice() -> None:
    principle = CONSTITUTION.comparison_principles[0]
    turns = comparison_turns(CONSTITUTION, TURNS, principle, "i can not answer .", "take carve then melt .")
    asked = f"{REQUEST.text()} {principle.text} options :"
    question = f"{asked} (A) i can not answer . (B) take carve then melt . the answer is :"
    assert words(CHAT.prompt_ids(turns)) == f"<human> {question} <assistant>"
    assert "<unk>" not in words(CHAT.prompt_ids(turns))


def test_a_reasoned_question_and_its_answer_look_like_a_reasoned_choice() -> None:
    """As the feedback stage puts it together: opening, the model's own thoughts, closing, label."""
    written = next(d for d in documents(WORLD, 1000, seed=0) if "think" in d[0][0] and "mocks" in d[1][0])
    text = " ".join(part for part, _ in written)
    found = re.search(
        r"<human> (make \w+ \w+ \? mock \w+ \.) (which .* \?) options : \(A\) (.*) \(B\) (.*) think \.", text
    )
    assert found is not None
    request, principle, a, b = found.groups()
    reasoning = replace(CONSTITUTION.templates, comparison=CONSTITUTION.templates.reasoning)
    asked = comparison_text(replace(CONSTITUTION, templates=reasoning), (Turn("human", request),), principle, a, b)
    prompt = words(CHAT.prompt_ids((Turn("human", asked),), prefill=lexicon.THOUGHT[0]))
    assert text.startswith(prompt)
    assert re.search(re.escape(lexicon.CONCLUSION) + r" \([AB]\) <eos>$", text)


def test_answers_survive_the_way_through_ids() -> None:
    example = CHAT.example(TURNS, "i can not answer .")
    response = [i for i, w in zip(example.ids, example.weights, strict=True) if w]
    assert CHAT.response_text(response) == "i can not answer ."
    assert response[-1] == TOKENIZER.eos_token_id == CHAT.eos_id
    assert CHAT.option_ids("", ("(A)", "(B)")) == ((5,), (6,))
