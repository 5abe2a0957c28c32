"""What models write is read safely."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai_dist.constitution import Labels, Parsed, ParseFailure, clean_answer, load_constitution, split_dialogue
from cai_dist.types import Turn

MARKERS = ["Human:", "Assistant:", "Critique Request:", "Critique:", "Revision Request:", "Revision:"]
WORDS = st.text(alphabet="abcdefghijklmnop \n.,(){}AB:", max_size=60)


@pytest.mark.parametrize("marker", MARKERS)
def test_the_answer_ends_where_another_part_begins(marker: str) -> None:
    assert clean_answer(f" Fine.\nThank you.\n\n{marker} and more\n\nHuman: x") == Parsed("Fine.\nThank you.")


def test_a_label_of_its_own_in_front_is_dropped() -> None:
    assert clean_answer("Revision: Better so.") == Parsed("Better so.")
    assert clean_answer("Critique: Revision: odd") == Parsed(None, ParseFailure.EMPTY)


def test_a_label_in_the_middle_of_a_line_is_just_a_word() -> None:
    text = "In chess, the Human: Machine score is 0:1."
    assert clean_answer(text) == Parsed(text)


@pytest.mark.parametrize(
    "text", ["", "  \n\t ", "Human: hello", "\n\nHuman: hello", "Assistant:", "Revision:\n\nHuman: x"]
)
def test_nothing_of_its_own_is_empty(text: str) -> None:
    assert clean_answer(text) == Parsed(None, ParseFailure.EMPTY)


@pytest.mark.parametrize(
    "text",
    ["no " * 24, "a cruel mistress, " * 8, "It began. " + "one two three four five six seven " * 5, "x\n" * 500],
)
def test_loops_are_runaways(text: str) -> None:
    assert clean_answer(text) == Parsed(None, ParseFailure.RUNAWAY)


@pytest.mark.parametrize(
    "text",
    [
        "no " * 23,
        "ha ha ha ha! That is very, very, very funny.",
        "one two three four five six seven " * 3,
        "\n".join(f"{i}. Buy item number {i} and put it in the bag" for i in range(40)),
    ],
)
def test_emphasis_and_lists_are_not(text: str) -> None:
    assert clean_answer(text) == Parsed(text.strip())


def test_copies_of_worked_examples_are_refused() -> None:
    shown = load_constitution("default").few_shot_critiques[0][-1].text
    assert clean_answer(f"Revision: {shown}\n\nHuman: next", forbidden={shown}) == Parsed(None, ParseFailure.COPY)
    assert clean_answer(shown + " Indeed.", forbidden={shown}).failure is None


def test_labels_of_another_constitution_count() -> None:
    labels = Labels(human="Mensch: ", revision="Fassung: ")
    assert clean_answer("Gut.\n\nMensch: und?", labels) == Parsed("Gut.")
    assert clean_answer("Gut.\n\nHuman: und?", labels) == Parsed("Gut.\n\nHuman: und?")
    assert clean_answer("plain text", Labels("", "", "", "", "", "")) == Parsed("plain text")


@given(st.lists(st.one_of(WORDS, st.sampled_from(["\n\n" + m for m in MARKERS])), max_size=12))
def test_what_passes_holds_no_other_part_and_is_stable(pieces: list[str]) -> None:
    parsed = clean_answer("".join(pieces))
    assert (parsed.text is None) != (parsed.failure is None)
    if parsed.text is not None:
        assert parsed.text == parsed.text.strip() != ""
        assert not any(line.strip().startswith(tuple(MARKERS)) for line in parsed.text.split("\n"))
        assert clean_answer(parsed.text) == parsed


@given(st.text(max_size=200))
def test_no_text_breaks_it(text: str) -> None:
    clean_answer(text)
    split_dialogue(text, {"Human": "human"})


ROLE = st.sampled_from(["human", "assistant"])
PLAIN = st.text(alphabet="abc xyz.?!\n", min_size=1, max_size=30).map(str.strip).filter(bool)


@given(st.lists(st.builds(Turn, ROLE, PLAIN), min_size=1, max_size=6))
def test_dialogues_split_into_what_they_were_joined_from(turns: list[Turn]) -> None:
    names = {"human": "Human", "assistant": "Assistant"}
    text = "".join(f"\n\n{names[t.role]}: {t.text}" for t in turns)
    markers = {"Human": "human", "Assistant": "assistant"}
    assert split_dialogue(text, markers) == turns
    assert split_dialogue(text.lstrip(), markers) == turns
    assert split_dialogue("Once upon a time " + text, markers) == []
