"""The questions put to models: their shape, and that nothing inside an answer can bend it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai_dist.constitution import (
    comparison_text,
    comparison_turns,
    critique_turns,
    draw,
    draw_some,
    few_shot_turns,
    load_constitution,
    revision_turns,
)
from cai_dist.types import Turn

DEFAULT = load_constitution("default")
QUESTION = (Turn("human", "How?"), Turn("assistant", "Like this."), Turn("human", "And then?"))
PRINCIPLE = DEFAULT.critique_principles[0]


def test_the_comparison_has_the_shape_of_the_paper() -> None:
    assert comparison_text(DEFAULT, QUESTION, "Choose well.", "first", "second") == (
        "Consider the following conversation between a human and an assistant:\n"
        "Human: How?\n\nAssistant: Like this.\n\nHuman: And then?\n"
        "Choose well.\n"
        "Options:\n"
        "(A) first\n"
        "(B) second\n"
        "The answer is:"
    )


@given(st.text(max_size=40), st.text(max_size=40))
def test_answers_go_in_verbatim_and_once(a: str, b: str) -> None:
    empty = comparison_text(DEFAULT, QUESTION, "P", "", "")
    head, rest = empty.split("(A) ")
    middle, tail = rest.split("(B) ")
    assert comparison_text(DEFAULT, QUESTION, "P", a, b) == f"{head}(A) {a}{middle}(B) {b}{tail}"


@pytest.mark.parametrize(
    "hostile", ["{b}", "{a}{b}{principle}", "{", "}{", "{0}", "{b!r}", "%s", "\\1", "\\g<0>", "(B) no"]
)
def test_hostile_answers_stay_text(hostile: str) -> None:
    turns = (Turn("human", hostile),)
    text = comparison_text(DEFAULT, turns, hostile, hostile, "B")
    assert text.count(hostile) >= 3 and f"(A) {hostile}\n(B) B\n" in text


def test_critique_and_revision_continue_the_conversation() -> None:
    critique = critique_turns(QUESTION, "Answer.", PRINCIPLE)
    assert critique[:3] == QUESTION
    assert [t.role for t in critique[3:]] == ["assistant", "critique_request"]
    revision = revision_turns(QUESTION, "Answer.", PRINCIPLE, "Bad.")
    assert revision[:5] == critique
    assert revision[5:] == (Turn("critique", "Bad."), Turn("revision_request", PRINCIPLE.revision_request))
    direct = revision_turns(QUESTION, "Answer.", PRINCIPLE)
    assert [t.role for t in direct[3:]] == ["assistant", "revision_request"]


def test_few_shot_dialogues_are_drawn_by_key_and_never_twice() -> None:
    shown = few_shot_turns(DEFAULT, 3, 0, "prompt", 1)
    assert sum(t.role == "revision" for t in shown) == 3
    assert len({t.text for t in shown if t.role == "revision"}) == 3
    assert shown == few_shot_turns(DEFAULT, 3, 0, "prompt", 1)
    assert len({few_shot_turns(DEFAULT, 3, 0, "prompt", i) for i in range(20)}) > 5
    assert few_shot_turns(DEFAULT, 0) == ()
    assert len([t for t in few_shot_turns(DEFAULT, 99) if t.role == "revision"]) == len(DEFAULT.few_shot_critiques)
    direct = few_shot_turns(DEFAULT, 3, 0, "prompt", 1, critique=False)
    assert not [t for t in direct if t.role in ("critique", "critique_request")]


def test_few_shot_comparisons_say_the_answer_in_the_asked_form() -> None:
    principle = DEFAULT.comparison_principles[4]
    turns = comparison_turns(DEFAULT, QUESTION, principle, "x", "y", few_shot=4, seed=3, answers=("(A)", "(B)"))
    assert [t.role for t in turns] == ["human", "assistant"] * 4 + ["human"]
    assert Counter(t.text for t in turns if t.role == "assistant") == {"(A)": 2, "(B)": 2}
    assert turns[-1] == Turn("human", comparison_text(DEFAULT, QUESTION, principle.text, "x", "y"))
    right = {e.a if e.answer == "A" else e.b for e in DEFAULT.few_shot_comparisons}
    for question, answer in zip(turns[0:8:2], turns[1:8:2], strict=True):
        assert any(f"{answer.text} {text}" in question.text for text in right)


def test_an_example_without_a_principle_draws_one() -> None:
    from dataclasses import replace

    examples = tuple(replace(e, principle="") for e in DEFAULT.few_shot_comparisons)
    constitution = replace(DEFAULT, few_shot_comparisons=examples)
    texts = {p.text for p in DEFAULT.comparison_principles}
    seen = set()
    for seed in range(30):
        question = comparison_turns(constitution, QUESTION, DEFAULT.comparison_principles[0], "x", "y", 1, seed)[0].text
        [used] = [t for t in texts if f"\n{t}\nOptions:" in question]
        seen.add(used)
    assert len(seen) > 5


def test_draws_are_fixed_for_ever() -> None:
    # Recorded once; a change here would change every run ever made with a seed.
    assert [draw(0, "revise", "p", r, n=16) for r in range(1, 5)] == EXPECTED_DRAWS


EXPECTED_DRAWS = [7, 0, 4, 7]


def test_draws_are_uniform_and_independent_of_each_other() -> None:
    # 16,000 draws over 16 cells: each expects 1,000 with a standard deviation of 31; six of
    # them happen by chance once in 30 million.
    counts = Counter(draw(0, f"prompt{i}", 1, n=16) for i in range(16_000))
    assert all(abs(counts[k] - 1000) < 190 for k in range(16))
    pairs = Counter((draw(0, f"prompt{i}", 1, n=4), draw(0, f"prompt{i}", 2, n=4)) for i in range(16_000))
    assert all(abs(pairs[j, k] - 1000) < 190 for j in range(4) for k in range(4))


def test_keys_do_not_run_together() -> None:
    assert draw(0, "a", 1, n=1 << 60) != draw(0, "a1", n=1 << 60)
    assert draw(0, "a", "b", n=1 << 60) != draw(0, "ab", n=1 << 60)
    assert draw(0, 1, n=1 << 60) != draw(0, "1", n=1 << 60)
    with pytest.raises(ValueError):
        draw(0, "a", n=0)


@given(st.integers(0, 12), st.integers(0, 15), st.integers(0, 1000))
def test_draw_some_takes_different_things(n: int, k: int, seed: int) -> None:
    chosen = draw_some(seed, "x", n=n, k=k)
    assert len(chosen) == len(set(chosen)) == min(n, k)
    assert all(0 <= i < n for i in chosen)
