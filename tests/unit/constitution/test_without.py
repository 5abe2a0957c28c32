"""A run may leave principles out: nothing else changes, and the hash says so."""

from __future__ import annotations

import pytest

from cai_dist.config.loading.load import build_run
from cai_dist.constitution import load_constitution, run_constitution
from cai_dist.constitution.check import check_constitution
from cai_dist.errors import ConfigError

DEFAULT = load_constitution("default")
MODELS = {"assistant": "a/b", "pretrained": "a/b", "feedback": "a/b"}


def test_an_id_leaves_both_lists_and_takes_its_worked_comparison_along() -> None:
    left = DEFAULT.without(["privacy"])
    assert [p for p in DEFAULT.critique_principles if p.id != "privacy"] == list(left.critique_principles)
    assert [p for p in DEFAULT.comparison_principles if p.id != "privacy"] == list(left.comparison_principles)
    [text] = [p.text for p in DEFAULT.comparison_principles if p.id == "privacy"]
    assert [e for e in DEFAULT.few_shot_comparisons if e.principle != text] == list(left.few_shot_comparisons)
    assert len(left.few_shot_comparisons) == len(DEFAULT.few_shot_comparisons) - 1
    assert (left.templates, left.few_shot_critiques, left.name) == (
        DEFAULT.templates, DEFAULT.few_shot_critiques, DEFAULT.name)  # fmt: skip


def test_an_id_of_one_kind_leaves_that_one() -> None:
    left = DEFAULT.without(["violence"])  # a critique principle alone
    assert (len(left.critique_principles), len(left.comparison_principles)) == (15, 16)


def test_the_hash_follows_from_what_is_left() -> None:
    assert DEFAULT.without([]).sha256 == DEFAULT.sha256
    one, two = DEFAULT.without(["law"]), DEFAULT.without(["care"])
    assert len({DEFAULT.sha256, one.sha256, two.sha256}) == 3
    assert one.without(["care"]).sha256 == two.without(["law"]).sha256 == DEFAULT.without(["care", "law"]).sha256


def test_the_note_says_which_constitution_it_was() -> None:
    assert DEFAULT.without(["law"]).note(["law", "law"]) == {
        "name": "default", "version": "1", "sha256": DEFAULT.without(["law"]).sha256, "without": ["law"]}  # fmt: skip


def test_the_run_is_given_what_is_left() -> None:
    config = build_run({"name": "x", "models": MODELS, "without_principles": ["law"]})
    assert run_constitution(config) == DEFAULT.without(["law"])
    assert run_constitution(build_run({"name": "x"})) == DEFAULT


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"without_principles": ["privcy"]}, "did you mean privacy?"),
        ({"without_principles": ["qqqq"]}, "ids here: balance, care"),
        (
            {"without_principles": ["law"], "revise": {"principles": 16}},
            "must be at most 15; constitution=default without law",
        ),
        ({"without_principles": ["law"], "feedback": {"per_pair": 16}}, "feedback.per_pair=16: must be at most 15"),
        ({"without_principles": ["privacy"], "feedback": {"few_shot": 4}}, "has 3 worked comparisons"),
        ({"feedback": {"per_pair": 17}}, "feedback.per_pair=17: must be at most 16"),
        ({"feedback": {"reasoning": {"few_shot": 99}}}, "feedback.reasoning.few_shot=99: must be at most"),
        (
            {"without_principles": [p.id for p in DEFAULT.comparison_principles]},
            "leaves none of the comparison_principles",
        ),
    ],
)
def test_check_refuses_in_one_line(sections, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_constitution(build_run({"name": "x", "models": MODELS, **sections}))
    assert part in str(caught.value) and "\n" not in str(caught.value)
