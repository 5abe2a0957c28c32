"""What models and servers say, however mangled, is a text that can be used or a counted failure; it never breaks a
parser, a table, a transcript or the report."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.feedback import FeedbackConfig, ReasoningConfig
from cai_dist.constitution import Labels, clean_answer, comparison_text, load_constitution
from cai_dist.constitution.parse import ParseFailure, split_dialogue
from cai_dist.data.chat import ChatFormat
from cai_dist.data.dialogues import MARKERS, dialogue, safe_text
from cai_dist.data.html_text import plain_text
from cai_dist.data.near_duplicates import NearDuplicates, Overlaps, words_of
from cai_dist.report.page import _read_lines
from cai_dist.stages.ai_feedback.questions import usable_reasoning
from cai_dist.stages.ai_feedback.server_reading import option_logprobs, read_positions, read_text
from cai_dist.stages.evaluation.overreaction import boilerplate, distinct
from cai_dist.stages.evaluation.refusals import is_canned_refusal, reactions
from cai_dist.stages.execution.generation import Answer
from cai_dist.stages.expand import Sieve, WrittenPrompt
from cai_dist.stages.tables.records import Revision, Sampled, read_revisions, write_revisions
from cai_dist.stages.tables.transcripts import quote, write_evaluation_transcripts, write_revision_transcripts
from cai_dist.types import Prompt, Turn
from cai_dist.world.tokenizer import build_tokenizer

COUNT, SERVER = 400, 400
PIECES: Sequence[str] = [
    *("Human:", "Assistant:", "Critique:", "Revision:", "Critique Request:", "\n\n", "\n", " ", "\t", "\x00", "\u2028"),
    *("\u200b", "\ufeff", "\r", "(A)", "A", "Options:", "The answer is:", "So the answer is:", "{a}", "{principle}"),
    *("<script>", "```", "# x", "I can't help", "word", "<|im_end|>", "<human>", "<eos>", "🧨", "é", "ﬁ", "١", "。"),
    *("so so so so so ", "-" * 50, "\x1b[2J", "9" * 400, "&#0;", "</p>", "</details>"),
]
LONG = ["a" * 200_000, "a " * 50_000, "\n\n" * 50_000, "<" * 50_000, "Human: " * 20_000, "(" * 50_000, " \n" * 50_000]
LONG += ["So the " * 20_000, "\n\nHuman:" * 20_000, "&" * 50_000, "ab " * 30_000 + "c"]


def texts() -> list[str]:
    """What a weak or hostile model may say. (Decoding tokens never gives lone surrogates.)"""
    found = [*LONG, "", "Human:", "\n\nAssistant:\n\nHuman: x"]
    for number in range(COUNT - len(found)):
        rng = random.Random(f"text {number}")
        found.append("".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 60))))
    return found


PROMPT = Prompt("p", (Turn("human", "how do i do it"),), "red_team")


@pytest.mark.parametrize("labels", [Labels(), Labels("", "", "", "", "", ""), Labels("H", "A:", " ", "\n", "(", "[")])
@pytest.mark.parametrize("human", [False, True])
def test_every_text_is_used_or_a_failure_with_a_reason(labels: Labels, human: bool) -> None:
    reasons = set()
    for text in texts():
        found = clean_answer(text, labels, {"word"}, human=human)
        assert (found.text is None) == (found.failure in set(ParseFailure))
        reasons.add(found.failure)
        if found.text is not None:
            assert found.text == found.text.strip() != ""
            again = clean_answer(found.text, labels, {"word"}, human=human)
            assert human or labels != Labels() or again.text == found.text
    assert reasons >= {None, "empty", "runaway"}


def test_no_text_gets_past_the_sieve_as_no_prompt() -> None:
    kept: list[str] = []

    def parse(sample: WrittenPrompt) -> tuple[str, str]:
        found = clean_answer(safe_text(sample.answer.text), Labels(), human=True)
        return found.text or "", str(found.failure or "")

    sieve = Sieve(parse, Overlaps(0.7, ["word word word"]).likeness, NearDuplicates(0.7), set())
    for i, text in enumerate([*texts(), *texts()]):
        if sieve.take(WrittenPrompt(i, Answer(str(i), text, "stop"), ())):
            kept.append(sieve.kept[-1].prompt.turns[0].text)
    assert len(kept) + sieve.refused.total() == 2 * COUNT, "every one is kept or counted"
    assert kept and len({words_of(t) for t in kept}) == len(kept)
    assert sieve.refused["repeated"] >= len(kept), "the second time, all of them had been there"


def test_tables_transcripts_and_report_give_back_every_text(tmp_path: Path) -> None:
    said = [safe_text(t) if "\x00" in t else t for t in texts()]
    revisions = [Revision(PROMPT, i, "k", t[::-1], t, "") for i, t in enumerate(said)]
    write_revisions(tmp_path / "r.parquet", revisions)
    assert read_revisions(tmp_path / "r.parquet") == revisions
    write_revision_transcripts(tmp_path / "r.md", revisions)
    assert all(line.startswith("    ") for t in said for line in quote(t).splitlines())
    short = [t for t in said if len(t) < 10_000]
    prompts = [Prompt(f"p{i}", (Turn("human", t or "?"),), "red_team", "heldout") for i, t in enumerate(short)]
    samples = {"base": [Sampled(p, t) for p, t in zip(prompts, short, strict=True)]}
    [jsonl, _] = write_evaluation_transcripts(tmp_path / "t.jsonl", tmp_path / "t.md", samples, len(short))
    assert [line["base"] for line in _read_lines(jsonl)] == short
    reactions(samples["base"])
    assert 0 <= (distinct(short, 2)["value"] or 0) <= 1
    assert all(0 < share <= 1 for share in boilerplate(samples["base"], 0.1).values())


def test_every_text_can_be_put_in_every_form() -> None:
    constitution = load_constitution("default")
    tokenizer = build_tokenizer()
    chat = ChatFormat(tokenizer, "template", constitution.templates.labels)
    reasoning = FeedbackConfig(reasoning=ReasoningConfig())
    for text in texts():
        for turn in (*split_dialogue(text, MARKERS), *dialogue(text)):
            assert turn.text == turn.text.strip()
        plain_text(text)
        is_canned_refusal(PROMPT, text)
        thoughts = usable_reasoning(reasoning, constitution.templates.labels, text)
        assert thoughts is None or thoughts.strip()
        assert text in comparison_text(constitution, PROMPT.turns, "which ?", text, "no")
        if len(text) < 10_000:
            ids = chat.prompt_ids((*PROMPT.turns, Turn("assistant", text), Turn("human", text)))
            opened = [i for i in ids if i == tokenizer.convert_tokens_to_ids("<human>")]
            assert len(opened) == 2, "no text opens a turn"


BASE = {
    "choices": [
        {
            "message": {"content": "So (A) it is"},
            "logprobs": {
                "content": [
                    {"token": "(", "logprob": -0.1, "top_logprobs": [{"token": "B", "logprob": -2.0}]},
                    {"token": "A", "logprob": -0.2, "top_logprobs": []},
                ]
            },
        }
    ]
}
NASTY: list[Any] = [None, True, -1, 3.5, 10**400, "", "\ud800", "A" * 5000, [], {}, [None], [[]], [{}], {"token": 1}]
NASTY += [float("nan"), float("-inf"), float("inf"), "(A)\x00", {"token": "\udfff", "logprob": -1}]


def places(value: Any) -> list[tuple[Any, Any]]:
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, key) for key, _ in items] + [place for _, inner in items for place in places(inner)]


def test_every_answer_of_a_server_is_read_or_refused() -> None:
    seen = set()
    for number in range(SERVER):
        rng = random.Random(f"server {number}")
        answer = json.loads(json.dumps(BASE))
        for _ in range(rng.choice((1, 1, 2, 3))):
            container, key = rng.choice(places(answer)) if places(answer) else ({}, "")
            if isinstance(container, dict) and rng.random() < 0.2:
                container.pop(key, None)
            else:
                container[key] = json.loads(json.dumps(rng.choice(NASTY)))
        for reader in (read_text, read_positions):
            try:
                found: Any = reader(answer)
            except ValueError as error:  # what the client takes for nonsense
                seen.add(type(error).__name__)
                assert "\n" not in str(error)
                continue
            seen.add("read")
            if reader is read_text:
                found["text"].encode()  # it goes into files and back to the server
            else:
                mass = option_logprobs(found, ("(A)", "(B)"))
                assert mass is None or (len(mass) == 2 and all(m <= 0.05 for m in mass))
    assert seen == {"read", "ValueError"}
