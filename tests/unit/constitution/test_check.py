"""A run may not ask its constitution for more than it holds."""

from __future__ import annotations

import pytest

from cai_dist.config.loading.load import build_run
from cai_dist.constitution.check import check_constitution
from cai_dist.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"revise": {"principles": 17}}, "revise.principles=17: must be at most 16"),
        ({"feedback": {"principles": 17}}, "feedback.principles=17: must be at most 16"),
        ({"revise": {"few_shot": 1}}, "revise.few_shot=1: must be at most 0"),
        ({"feedback": {"few_shot": 1}}, "feedback.few_shot=1: must be at most 0"),
        ({"evaluate": {"elo": {"principles": 17}}}, "evaluate.elo.principles=17: must be at most 16"),
        (
            {"feedback": {"principles": 4}, "evaluate": {"elo": {"principles": 5}}},
            "has 4 comparison principles in use (feedback.principles)",
        ),
        ({"constitution": "default"}, "set constitution=micro"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(sections, part) -> None:
    with pytest.raises(ConfigError) as caught:
        check_constitution(build_run({"name": "x", "constitution": "micro", **sections}))
    [line] = str(caught.value).splitlines()
    assert part in line


def test_what_is_there_may_be_asked_for() -> None:
    check_constitution(build_run({"name": "x", "constitution": "micro", "revise": {"principles": 16}}))
    models = {"assistant": "a/b", "pretrained": "a/b", "feedback": "a/b"}
    check_constitution(build_run({"name": "x", "models": models, "revise": {"few_shot": 4}}))


def test_a_malformed_constitution_is_found_before_the_run(tmp_path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: c\n")
    with pytest.raises(DataError, match="c.yaml"):
        check_constitution(build_run({"name": "x", "constitution": str(path)}))
