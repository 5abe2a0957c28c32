"""Settings of the evaluation that contradict the run, each one line with a way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.checks.run import check_run
from cai_dist.config.loading.load import build_run
from cai_dist.errors import ConfigError


def problems(**sections: Any) -> list[str]:
    try:
        check_run(build_run({"name": "x", "constitution": "micro", **sections}), ready=False)
    except ConfigError as error:
        return str(error).splitlines()
    return []


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """Prompts from files, which nothing of the micro-world fits."""
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    return {
        "data": {
            "red_team": {"source": str(tmp_path / "a.jsonl")}, "helpful": {"source": str(tmp_path / "b.jsonl")},
            "helpful_comparisons": {"source": "none"},
        },
        "preference": {"helpful_fraction": 0.0},
        "models": {"assistant": "org/m", "pretrained": "org/m", "feedback": "org/m"},
    }  # fmt: skip


def test_what_fits_is_let_through(files: dict[str, Any], tmp_path: Path) -> None:
    assert problems() == [] == problems(**files)
    assert problems(evaluate={"multiple_choice": ["world"], "elo": {"judge": "oracle"}}) == []
    assert problems(data={"harm_ratings": {"source": "world"}}, ppo={"snapshot_every": 5}) == []
    assert problems(**files, evaluate={"multiple_choice": [str(tmp_path / "a.jsonl")]}) == []


def test_the_micro_worlds_parts_need_its_prompts(files: dict[str, Any]) -> None:
    [line] = problems(**files, evaluate={"elo": {"judge": "oracle"}})
    assert line.startswith("evaluate.elo.judge=oracle:")
    [line] = problems(**files, evaluate={"multiple_choice": ["world"]})
    assert line.startswith("evaluate.multiple_choice:") and "micro-world" in line
    files["data"]["harm_ratings"] = {"source": "world"}
    [line] = problems(**files)
    assert line.startswith("data.harm_ratings.source=world:")


@pytest.mark.parametrize(
    ("sections", "start"),
    [
        ({"alignment": "dpo", "evaluate": {"elo": {"judge": "preference"}}}, "evaluate.elo.judge=preference:"),
        ({"ppo": {"iterations": 5, "snapshot_every": 5}}, "ppo.snapshot_every=5:"),
        ({"evaluate": {"multiple_choice": ["world", "world"]}}, "evaluate.multiple_choice: names a file twice"),
        ({"evaluate": {"multiple_choice": ["/no/such.jsonl"]}}, "evaluate.multiple_choice='/no/such.jsonl': no such"),
        ({"data": {"harm_ratings": {"source": "/no/such.jsonl"}}}, "data.harm_ratings.source="),
        (
            {"models": {"context": 600},
             "evaluate": {"ratings": {"train": {"sharding": {"max_tokens_per_micro_batch": 600}}}}},
            "evaluate.ratings.train.sharding.max_tokens_per_micro_batch=600:",
        ),
    ],
)  # fmt: skip
def test_each_contradiction_is_one_line(sections: dict[str, Any], start: str) -> None:
    [line] = problems(**sections)
    assert line.startswith(start)


def test_the_rating_models_ranks_are_counted() -> None:
    wanted = {"cluster": {"num_cpus": 8, "cpus": 2}, "evaluate": {"ratings": {"train": {"sharding": {"ranks": 6}}}}}
    assert problems(**wanted) == []  # no ratings, no workers
    [line] = problems(**wanted, data={"harm_ratings": {"source": "world"}})
    assert "evaluate.ratings.train.sharding.ranks" in line
