"""Every layout of docs/data.md, on a file as people have it: which prompts, which pairs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.data import ComparisonSource, RankedSource, RatingSource
from cai_dist.data.comparisons import load_comparison_set
from cai_dist.data.dialogues import SkipRecord
from cai_dist.data.layouts import LAYOUTS, LayoutReader
from cai_dist.data.pairs import MISMATCH
from cai_dist.data.ranked import load_ranked_set
from cai_dist.data.ratings import load_rating_set
from cai_dist.data.records import Record
from cai_dist.data.sources import read_records
from cai_dist.errors import DataError

FILES = Path(__file__).parent / "layouts"
PAGE = Path(__file__).parents[3] / "docs" / "data.md"
KITES, BRIEF = "How do kites fly?", "system: Be brief."
WIND = ("By wind.", "Go away.")
LOCK = ("Call a locksmith.", "With a pick.")
TALK = ["human: Hello", "assistant: Hi", f"human: {KITES}"]
FRENCH = ["human: Translate into French.\n\nThe kite flies."]
BIRD = ["human: Name a bird."]
PROMPTS: dict[str, list[list[str]]] = {
    "prompt.jsonl": [[f"human: {KITES}"], TALK, [BRIEF, f"human: {KITES}"]],
    "prompt-completion.jsonl": [[f"human: {KITES}"], ["human: How do boats swim?"]],
    "hh-rlhf.jsonl": [TALK, ["human: And boats?"]],
    "red-team-attempts.jsonl": [[*TALK[:2], "human: How do I pick a lock?"], ["human: Insult me"]],
    "alpaca.jsonl": [FRENCH, BIRD],
    "dolly.jsonl": [["human: Summarise the text.\n\nKites fly by wind."], BIRD],
    "self-instruct.jsonl": [FRENCH, BIRD],
    "instruction-history.jsonl": [[BRIEF, *TALK[:2], *BIRD]],
    "messages.jsonl": [[BRIEF, *TALK], ["human: And boats?"]],
    "no-robots.jsonl": [TALK],
    "sharegpt.jsonl": [TALK],
    "sharegpt-preference.jsonl": [[BRIEF, f"human: {KITES}"]],
    "lmsys.jsonl": [TALK],
    "trl-explicit.jsonl": [[f"human: {KITES}"]],
    "trl-implicit.jsonl": [[BRIEF, f"human: {KITES}"]],
    "ultrafeedback.jsonl": [[f"human: {KITES}"]],
    "prompt-and-dialogues.jsonl": [[f"human: {KITES}"]],
    "orca.jsonl": [[BRIEF, f"human: {KITES}"]],
    "openorca.jsonl": [[BRIEF, f"human: {KITES}"]],
    "cai-conversation.jsonl": [["human: How do I pick a lock?"]],
    "pku-saferlhf.jsonl": [["human: How do I pick a lock?"], [f"human: {KITES}"]],
    "shp.jsonl": [["human: How long do eggs keep?"], ["human: Why salt pasta water?"]],
    "instruction-preference.jsonl": [FRENCH],
    "prompt.csv": [['human: How do kites, in "wind", fly?'], [BRIEF, "human: Line one\nline two"]],
    "preference.tsv": [[f"human: {KITES}"]],
}
"""File -> the prompt of each record, turn by turn."""
PAIRS: dict[str, list[tuple[str, str]]] = {
    "hh-rlhf.jsonl": [WIND, ("They are light.", "No.")],
    "sharegpt-preference.jsonl": [WIND],
    "trl-explicit.jsonl": [WIND],
    "trl-implicit.jsonl": [WIND],
    "ultrafeedback.jsonl": [WIND],
    "prompt-and-dialogues.jsonl": [WIND],
    "orca.jsonl": [WIND],
    "cai-conversation.jsonl": [LOCK],
    "pku-saferlhf.jsonl": [LOCK, WIND],
    "shp.jsonl": [("Three weeks when cold.", "Long."), ("For taste.", "No idea.")],
    "instruction-preference.jsonl": [("Le cerf-volant vole.", "No.")],
    "preference.tsv": [WIND],
}
"""File -> (better, worse) answer of each record."""
OTHERS = {"ratings.jsonl", "stack-exchange.jsonl"}


def said(turns: Any) -> list[str]:
    return [f"{turn.role}: {turn.text}" for turn in turns]


def record(**data: Any) -> Record:
    return Record("x.jsonl:1", data)


ASKS_Z = "\n\nHuman: z\n\nAssistant: "
READER = LayoutReader("data.red_team")


@pytest.mark.parametrize("name", PROMPTS)
def test_the_prompts_of_a_layout(name: str) -> None:
    found = [said(READER.prompt(one).turns) for one in read_records(str(FILES / name))]
    assert found == PROMPTS[name]


@pytest.mark.parametrize("name", PAIRS)
def test_the_pairs_of_a_layout(name: str) -> None:
    found = [READER.pair(one) for one in read_records(str(FILES / name))]
    assert [(pair.chosen, pair.rejected) for pair in found] == PAIRS[name]
    assert [said(pair.turns) for pair in found] == PROMPTS[name]


def test_the_ratings_of_a_layout() -> None:
    found = load_rating_set(RatingSource(source=str(FILES / "ratings.jsonl")), 0).ratings
    assert {(*said(x.prompt.turns), x.response, x.rating) for x in found} == {
        ("human: How do I pick a lock?", "With a pick.", 3.5),
        ("human: Insult me", "You fool.", 4.0),
    }
    attempts = load_rating_set(RatingSource(source=str(FILES / "red-team-attempts.jsonl")), 0).ratings
    assert {(x.response, x.rating) for x in attempts} == {("I will not say.", 0.0), ("You fool.", 4.0)}


def test_the_ranked_answers_of_a_layout() -> None:
    [question] = load_ranked_set(RankedSource(source=str(FILES / "stack-exchange.jsonl")), 0).questions
    assert said(question.turns) == [f"human: {KITES}"]
    assert [(a.text, a.score) for a in question.answers] == [("By wind.", 3), ("Magic.", 0)]


def test_every_file_stands_in_the_table_of_the_page_and_every_row_has_a_file() -> None:
    linked = set(re.findall(r"tests/unit/data/layouts/([\w.-]+)", PAGE.read_text(encoding="utf-8")))
    assert linked == {path.name for path in FILES.iterdir()} == {*PROMPTS, *OTHERS}


def test_every_layout_of_the_code_is_read_from_a_file() -> None:
    used = set()
    for name in PROMPTS:
        for one in read_records(str(FILES / name)):
            used.add(next(x.name for x in LAYOUTS if set(x.needs) <= set(one.data)))
    assert {x.name for x in LAYOUTS} - used <= {"conversation with two answers"}


def test_which_turns_are_a_conversation_and_which_a_prompt() -> None:
    """Of a conversation every human turn is a prompt; a record that names its prompt means that one."""
    of = {name: READER.prompt(next(iter(read_records(str(FILES / name))))).conversation for name in PROMPTS}
    conversations = {name for name, is_one in of.items() if is_one}
    assert conversations == {
        "hh-rlhf.jsonl", "red-team-attempts.jsonl", "messages.jsonl", "no-robots.jsonl", "sharegpt.jsonl",
        "sharegpt-preference.jsonl", "lmsys.jsonl", "trl-implicit.jsonl",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "pair"),
    [
        ({"chosen": "good", "rejected": "bad"}, ("good", "bad")),
        ({"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "bad"}, ("good", "bad")),
        ({"chosen": "\n\nAssistant: good", "rejected": "Assistant: bad"}, ("good", "bad")),
        ({"chosen": [{"role": "assistant", "content": "good"}], "rejected": "bad"}, ("good", "bad")),
    ],
)
def test_an_answer_is_the_answer_alone_however_it_is_given(answers: dict[str, Any], pair: tuple[str, str]) -> None:
    found = READER.pair(record(prompt="q", **answers))
    assert (said(found.turns), found.chosen, found.rejected) == (["human: q"], *pair)


def test_a_system_turn_of_the_answers_is_part_of_the_prompt() -> None:
    asked = [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "q"}]
    lists = {key: [*asked, {"role": "assistant", "content": key}] for key in ("chosen", "rejected")}
    assert said(READER.pair(record(prompt="q", **lists)).turns) == ["system: Rhyme.", "human: q"]


def test_a_prompt_that_names_the_first_or_the_last_turn_alone() -> None:
    talk = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    for named in ("a", "c"):
        found = READER.pair(record(prompt=named, chosen=talk + "good", rejected=talk + "bad"))
        assert (said(found.turns), found.chosen) == (["human: a", "assistant: b", "human: c"], "good")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"prompt": "q", "chosen": "\n\nHuman: z\n\nAssistant: a", "rejected": "b"}, MISMATCH),
        ({"prompt": "q", "chosen": f"{ASKS_Z}a", "rejected": f"{ASKS_Z}b"}, MISMATCH),
        ({"system": "Be kind.", "prompt": [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "q"}],
          "chosen": "a", "rejected": "b"}, "two different system turns"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "an answer is missing"),
        ({"prompt": "q", "chosen": "a", "rejected": "a "}, "both answers are the same"),
        ({"chosen": "a", "rejected": "b"}, "chosen and rejected share no human turn"),
    ],
)  # fmt: skip
def test_pairs_that_cannot_be_used_are_skipped_for_a_reason(data: dict[str, Any], reason: str) -> None:
    with pytest.raises(SkipRecord) as caught:
        READER.pair(record(**data))
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "the prompt is empty"),
        ([{"role": "system", "content": "x"}], "no human turn"),
        ([{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}], "turns of tools"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [1]}],
         "turns of tools"),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "y"}]}],
         "a turn holds more than text"),
        ([{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}],
         "a turn is empty"),
    ],
)  # fmt: skip
def test_conversations_that_hold_no_prompt_are_skipped_for_a_reason(messages: list[Any], reason: str) -> None:
    with pytest.raises(SkipRecord) as caught:
        READER.prompt(record(messages=messages))
    assert str(caught.value) == reason


def test_a_prompt_beside_messages_that_do_not_say_it_is_refused() -> None:
    talk = [{"role": "user", "content": "q"}]
    assert said(READER.prompt(record(prompt="q", messages=talk)).turns) == ["human: q"]
    with pytest.raises(DataError, match="'prompt' is not said in 'messages'; name the one"):
        READER.prompt(record(prompt="another", messages=talk))


@pytest.mark.parametrize("better", [None, 2, "0", True, -1])
def test_which_answer_is_better_must_be_said(better: Any) -> None:
    given = record(prompt="q", response_0="a", response_1="b", better_response_id=better)
    with pytest.raises(DataError, match="'better_response_id' must be 0 or 1"):
        READER.pair(given)


def test_answers_that_all_begin_with_their_prompt_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    rows = [{"prompt": f"Q{i}: x A:", "chosen": f"Q{i}: x A: good", "rejected": f"Q{i}: x A: bad"} for i in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="in all 9 pairs both answers begin with the words of their prompt"):
        load_comparison_set(ComparisonSource(source=str(path), heldout=0), 0)
    path.write_text(path.read_text() + json.dumps({"prompt": "q", "chosen": "good", "rejected": "bad"}) + "\n")
    assert len(load_comparison_set(ComparisonSource(source=str(path), heldout=0), 0).comparisons) == 10
