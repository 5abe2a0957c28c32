"""`ppo.lora`: what a run file may say, and that nothing is reserved for workers that are not started."""

from __future__ import annotations

from typing import Any

import pytest

from cai_dist.cluster.placement import needed_cpus
from cai_dist.config.checks.run import check_run
from cai_dist.config.loading.load import build_run, merge
from cai_dist.config.run import RunConfig
from cai_dist.errors import ConfigError


def run_with(lora: Any, **sections: Any) -> RunConfig:
    return build_run(merge({"name": "x", "runs_dir": ".", "ppo": {"lora": lora}}, sections))


def test_the_default_is_all_weights_and_an_empty_section_is_rank_16() -> None:
    assert run_with(None).ppo.lora is None
    lora = run_with({}).ppo.lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.dropout, lora.target_modules, lora.save) == (16, 32.0, 0.0, "auto", "merged")
    named = run_with({"target_modules": ["q_proj", "v_proj"]}).ppo.lora
    assert named is not None and named.target_modules == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 0}, "ppo.lora.rank=0: must be at least 1"),
        ({"alpha": 0}, "ppo.lora.alpha=0: must be greater than 0"),
        ({"dropout": 1}, "ppo.lora.dropout=1: must be less than 1"),
        ({"target_modules": []}, "ppo.lora.target_modules=[]: must be auto or at least one name"),
        ({"target_modules": ["q_proj", ""]}, "ppo.lora.target_modules=['q_proj', '']: must be auto or names of"),
        ({"target_modules": "q_proj"}, "ppo.lora.target_modules='q_proj': must be 'auto' or a list"),
        ({"save": "both"}, "ppo.lora.save='both': must be one of 'merged' or 'adapter'"),
        ({"ranks": 8}, "did you mean ppo.lora.rank?"),
    ],
)
def test_a_mistake_is_one_line(lora: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_with(lora)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_no_reference_workers_are_counted() -> None:
    roles = {role: {"cpus": cpus} for role, cpus in (("policy", 1.0), ("value", 1.0), ("reward", 0.5))}
    roles["rollout"] = {"cpus": 1.0, "workers": 2}
    both = {"ppo": {"placement": roles}, "cluster": {"num_cpus": 6.5}}
    # 2 ranks x 1 + 2 ranks x 1 + 0.5 + 2 x 1 = 6.5; a reference would add 0.25
    adapters = run_with({}, **both)
    assert adapters.ppo.roles == ("policy", "value", "reward", "rollout")
    assert needed_cpus(adapters) == 6.5
    check_run(adapters, ready=False)
    with pytest.raises(ConfigError, match="must be at least 6.75"):
        check_run(run_with(None, **both), ready=False)


def test_a_placement_of_the_reference_beside_adapters_takes_no_room() -> None:
    placed = {"ppo": {"placement": {"reference": {"workers": 2, "cpus": 50.0}}}}
    adapters, without = run_with({}, **placed), run_with({})
    check_run(adapters, ready=False)
    assert needed_cpus(adapters) == needed_cpus(without) < 50 < needed_cpus(run_with(None, **placed))
