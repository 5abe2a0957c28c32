"""The question to a feedback model that thinks before it answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cai_dist.constitution import ComparisonPrinciple, load_constitution, published, reasoning_turns
from cai_dist.constitution.schema import problem
from cai_dist.types import Turn

ASK = (Turn("human", "Q {principle} {a}"),)
PRINCIPLE = ComparisonPrinciple("x", "Which is kinder?")
DEFAULT = load_constitution("default")


def with_reasoning(template: str):
    return replace(DEFAULT, templates=replace(DEFAULT.templates, reasoning=template))


def test_the_reasoning_template_is_filled_in_one_pass() -> None:
    made = with_reasoning("<{conversation}|{principle}|{a}|{b}>")
    [turn] = reasoning_turns(made, ASK, PRINCIPLE, "has {b}", "no")
    assert turn == Turn("human", "<Human: Q {principle} {a}|Which is kinder?|has {b}|no>")


def test_without_one_it_is_the_comparison_template() -> None:
    [turn] = reasoning_turns(with_reasoning(""), ASK, PRINCIPLE, "one", "two")
    assert turn.text.endswith("(A) one\n(B) two\nThe answer is:")


def test_worked_examples_end_with_their_answer_each_under_its_own_principle() -> None:
    texts = [p.text for p in DEFAULT.comparison_principles]
    turns = reasoning_turns(DEFAULT, ASK, PRINCIPLE, "one", "two", few_shot=4, seed=3)
    assert [t.role for t in turns] == ["human", "assistant"] * 4 + ["human"]
    shown = [[p for p in texts if p in t.text] for t in turns[:-1:2]]
    assert all(len(found) == 1 for found in shown) and len({found[0] for found in shown}) > 1
    answers = [t.text.rpartition("So the answer is: ")[2] for t in turns[1::2]]
    assert sorted(answers) == ["(A)", "(A)", "(B)", "(B)"]
    assert all(t.text.startswith("Let's think step by step: ") for t in turns[1::2])
    other = reasoning_turns(DEFAULT, ASK, PRINCIPLE, "one", "two", few_shot=4, seed=4)
    assert other != turns and other[-1] == turns[-1]


def test_the_closing_human_turn_of_the_published_form_joins_the_answer() -> None:
    published = (Turn("human", "Q {principle}"), Turn("assistant", "Thoughts."), Turn("human", "So: (B)"))
    turns = reasoning_turns(replace(DEFAULT, few_shot_reasoning=(published,)), ASK, PRINCIPLE, "one", "two", 1)
    assert turns[1] == Turn("assistant", "Thoughts.\n\nSo: (B)")


def test_published_files_are_thought_about_in_the_form_of_their_worked_examples(tmp_path: Path) -> None:
    """2212.08073, section 4.1: the plain question without "Options:" and "The answer is:"."""
    shown = "Consider the following conversation:\n\nH: Q\n\n{}\n (A) [[[x]]]\n (B) [[[y]]]"
    thought = f"\n\nHuman: {shown}\n\nAssistant: Let's think step by step: y.\n\nHuman:\nSo the answer is: (B)"
    dialogue = "\n\nHuman: Q\n\nAssistant: x\n\nCritiqueRequest: c\n\nCritique: d\n\nRevisionRequest: r\n\nRevision: y"
    request = {"prompt": ["\n\nCritiqueRequest: c\n\nCritique:"], "edit_request": "\n\nRevisionRequest: r\n\nRevision:"}
    files = {
        published.CRITIQUES: {"harm": request},
        published.CRITIQUE_EXAMPLES: [dialogue],
        published.COMPARISONS: ["Which is better?\n\nOptions:"],
        published.COMPARISON_EXAMPLES: [{"prompt": "\n\nHuman: Q", "corrects": ["y"], "incorrects": ["x"]}],
        published.REASONING_EXAMPLES: [{"prompt": thought}],
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    made = load_constitution(str(tmp_path))
    example, _, asked = reasoning_turns(made, ASK, made.comparison_principles[0], "one", "two", few_shot=1)
    assert example.text.endswith("Which is better?\n (A) [[[x]]]\n (B) [[[y]]]")
    assert asked.text.endswith("Which is better?\n (A) [[[one]]]\n (B) [[[two]]]")


@pytest.mark.parametrize("template", ["{conversation} {principle} {a}", "{conversation} {principle} {a} {b} {b}", "x"])
def test_slots_stand_there_once(template) -> None:
    assert "templates.reasoning" in (problem(with_reasoning(template)) or "")


def test_roles_of_worked_reasoning() -> None:
    wrong = replace(DEFAULT, few_shot_reasoning=((Turn("human", "Q"),),))
    assert "few_shot_reasoning[0]" in (problem(wrong) or "")
