"""Runs with `alignment: dpo` are checked for what they have, and for nothing that they leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.checks.run import check_run
from cai_dist.config.loading.load import build_run, merge
from cai_dist.errors import ConfigError


def problems(tmp_path: Path, **sections: Any) -> list[str]:
    config = build_run(merge({"name": "x", "runs_dir": str(tmp_path), "alignment": "dpo"}, sections))
    try:
        check_run(config, ready=False)
    except ConfigError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"data": {"helpful_comparisons": {"source": "none"}}}, "dpo.helpful_fraction=0.5: needs comparisons"),
        ({"expand": {"rl_prompts": 3, "rl_helpful": 4}}, "expand.rl_prompts and rl_helpful: 7 prompts for PPO alone"),
        ({"dpo": {"train": {"sharding": {"ds_config": "/no.json"}}}}, "dpo.train.sharding.ds_config='/no.json'"),
        (
            {"cluster": {"num_cpus": 1, "cpus": 0.3}, "dpo": {"train": {"sharding": {"ranks": 4}}}},
            "1.2 = dpo.train.sharding.ranks x cluster.cpus = 4 x 0.3",
        ),
    ],
)
def test_one_line_names_the_setting(tmp_path, sections, part):
    [line] = problems(tmp_path, **sections)
    assert part in line


def test_what_the_run_leaves_out_is_not_asked_for(tmp_path):
    # No reward model needs human comparisons, no PPO needs five roles at once or room for 128 new tokens.
    assert problems(tmp_path) == []
    none = {"data": {"helpful_comparisons": {"source": "none"}}, "dpo": {"helpful_fraction": 0.0}}
    assert problems(tmp_path, **none, cluster={"num_cpus": 1}) == []
    short = {stage: {"sampling": {"max_new_tokens": 8}} for stage in ("revise", "feedback", "evaluate")}
    assert problems(tmp_path, models={"context": 16}, **short) == []
    with pytest.raises(ConfigError, match="ppo.sampling.max_new_tokens=128"):
        build_run(merge({"name": "x", "models": {"context": 16}}, short))


@pytest.mark.parametrize(
    ("section", "part"),
    [
        ({"alignment": "rlhf"}, "alignment='rlhf'"),
        ({"dpo": {"beta": 0}}, "dpo.beta=0"),
        ({"dpo": {"loss": "hinge"}}, "dpo.loss='hinge'"),
        ({"dpo": {"helpful_fraction": 1}}, "dpo.helpful_fraction=1"),
    ],
)
def test_mistakes_are_one_line(section, part):
    with pytest.raises(ConfigError) as caught:
        build_run(merge({"name": "x"}, section))
    [line] = str(caught.value).splitlines()
    assert part in line
