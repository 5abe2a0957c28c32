"""Differences by principle id and text; none exactly where the hashes are equal."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from cai_dist.constitution import load_constitution, parse_constitution
from cai_dist.constitution.diff import diff
from cai_dist.constitution.show import headline, tables

PACKAGE = Path(sys.modules["cai_dist.constitution"].__file__ or "").parent
DEFAULT = load_constitution("default")


@pytest.fixture
def data() -> dict:
    return yaml.safe_load((PACKAGE / "default.yaml").read_text())


def reworded(d: dict) -> None:
    d["critique_principles"][0]["revision_request"] = "Do it\nbetter."


def removed(d: dict) -> None:
    del d["comparison_principles"][2]


def added(d: dict) -> None:
    d["comparison_principles"].append({"id": "beauty", "text": "Pick the prettier one."})


def renamed(d: dict) -> None:
    d["comparison_principles"][2]["id"] = "crime"


def reordered(d: dict) -> None:
    d["critique_principles"].reverse()


def new_version(d: dict) -> None:
    d["version"] = "2"


def new_label(d: dict) -> None:
    d["templates"]["labels"]["human"] = "User: "


def new_separator(d: dict) -> None:
    d["templates"]["separator"] = "\n"


def other_answer(d: dict) -> None:
    d["few_shot_comparisons"][1]["answer"] = "B"


def examples_turned(d: dict) -> None:
    d["few_shot_critiques"].reverse()


def reasoned(d: dict) -> None:
    turns = [{"role": "human", "text": "{principle}"}, {"role": "assistant", "text": "It is (A)."}]
    d.setdefault("few_shot_reasoning", []).insert(0, turns)


CHANGES = {
    reworded: ["critique_principles harm: revision_request"],
    removed: ["comparison_principles law: gone"],
    added: ["comparison_principles beauty: new"],
    renamed: ["comparison_principles: another id, the same text"],
    reordered: ["critique_principles: another order"],
    new_version: ["version"],
    new_label: ["templates.labels.human"],
    new_separator: ["templates.separator"],
    other_answer: ["few_shot_comparisons[1]: gone or changed", "few_shot_comparisons[1]: new or changed"],
    examples_turned: ["few_shot_critiques: another order or number"],
    reasoned: ["few_shot_reasoning[0]: new or changed"],
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_one_change_is_named_and_nothing_else(data: dict, change) -> None:
    change(data)
    other = parse_constitution(data, "x")
    assert other.sha256 != DEFAULT.sha256
    assert [d.entry for d in diff(DEFAULT, other)] == CHANGES[change]


def test_the_same_content_has_no_difference(data: dict) -> None:
    assert diff(DEFAULT, parse_constitution(data, "x")) == []


@pytest.mark.parametrize("other", [load_constitution("micro"), DEFAULT.without(["harm", "care"])])
def test_forth_and_back_are_the_same_entries_turned_round(other) -> None:
    forth, back = diff(DEFAULT, other), diff(other, DEFAULT)
    texts = sorted((d.before or "", d.after or "") for d in forth)
    assert texts == sorted((d.after or "", d.before or "") for d in back) and texts


def test_texts_stand_on_one_line_each_with_their_sign(data: dict) -> None:
    reworded(data)
    [difference] = diff(DEFAULT, parse_constitution(data, "x"))
    assert difference.lines()[1:] == [
        f"  - {' '.join(DEFAULT.critique_principles[0].revision_request.split())}",
        "  + Do it better.",
    ]


def test_the_tables_hold_every_principle_and_the_template() -> None:
    shown = {cell for table in tables(DEFAULT) for row in table.rows for cell in row}
    assert all(len(row) == len(table.columns) for table in tables(DEFAULT) for row in table.rows)
    assert {p.text for p in DEFAULT.comparison_principles} <= shown
    assert {p.critique_request for p in DEFAULT.critique_principles} <= shown
    assert {p.revision_request for p in DEFAULT.critique_principles} <= shown
    assert (
        DEFAULT.templates.comparison in shown and "2 with A better, 2 with B; 4 under a principle of their own" in shown
    )
    assert DEFAULT.sha256 in headline(DEFAULT) and "version 1" in headline(DEFAULT)
