"""What a run asks of a cluster, against the machines that its file names."""

from __future__ import annotations

from typing import Any

import pytest

from cai_dist.config.checks.run import check_run
from cai_dist.config.demand import demand_line, demands
from cai_dist.config.loading.load import build_run
from cai_dist.config.run import RunConfig
from cai_dist.errors import ConfigError

ROLES = ("policy", "value", "reference", "reward", "rollout")


def run_of(hardware: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    cluster = {"cpus": 2.0, "gpus": 1.0, "hardware": hardware or {}}
    return build_run({"name": "x", "cluster": cluster, **sections})


def ppo_of(mode: str, gpus: float = 1.0, **placement: Any) -> dict[str, Any]:
    roles = {role: {"cpus": 1.5, "gpus": gpus} for role in ROLES}
    ranks = {"policy": {"ranks": 4}, "value": {"ranks": 4}}
    return {"placement": {"mode": mode, **roles, **placement}, **ranks}


@pytest.mark.parametrize(
    ("ppo", "cpus", "gpus", "place"),
    [
        (ppo_of("separate"), 11 * 1.5, 11, 1.5),
        (ppo_of("colocated"), 20 * 1.5, 4, 7.5),
        (ppo_of("hybrid", share=[["policy", "rollout"], ["value", "reward"]]), 17 * 1.5, 9, 3.0),
        (ppo_of("separate", reference={"gpus": 0.5}, reward={"gpus": 0.5}), 10 * 1.5 - 1.0, 10, 1.5),
        (ppo_of("separate", gpus=0.0), 11 * 1.5, 0, 1.5),
        (ppo_of("colocated") | {"algorithm": "reinforce++"}, 16 * 1.5, 4, 6.0),
    ],
)
def test_ppo_asks_for_all_its_roles_together(ppo: dict[str, Any], cpus: float, gpus: int, place: float) -> None:
    found = next(one for one in demands(run_of(ppo=ppo)) if one.stage == "ppo")
    assert (found.cpus, found.gpus, found.place) == (cpus, gpus, place)


def test_every_other_stage_asks_for_its_largest_group() -> None:
    config = run_of(revise={"workers": 5}, sft={"train": {"sharding": {"ranks": 7}}})
    found = {one.stage: (one.cpus, one.gpus) for one in demands(config)}
    assert (found["revise"], found["sft"], found["evaluate"]) == ((10.0, 5), (14.0, 7), (4.0, 2))
    assert found.keys() == {"world", "revise", "sft", "feedback", "preference", "ppo", "evaluate"}
    assert "dpo" in {one.stage for one in demands(run_of(alignment="dpo"))}
    assert demand_line(config) == "asks for: 14 CPUs at once (sft), 2 in one place; 7 GPUs (sft)"


def test_an_engine_that_no_node_holds_is_refused() -> None:
    rollout = {"ppo": {"placement": {"rollout": {"workers": 1, "gpus": 1}}}}
    machines = {"nodes": 4, "gpus_per_node": 8}

    def engine(processes: int) -> dict[str, Any]:
        return {"backend": "vllm", "vllm": {"tensor_parallel": processes}}

    check_run(run_of(machines, engine=engine(8), **rollout), ready=False)
    with pytest.raises(ConfigError) as refused:
        check_run(run_of(machines, engine=engine(16), **rollout), ready=False)
    lines = str(refused.value).splitlines()
    assert any(line.startswith("cluster.hardware: 8 GPUs a node, but an engine of ppo is made of 16") for line in lines)
    assert any("an engine of revise is made of 16 on one; lower engine.vllm.tensor" in line for line in lines)


def test_a_run_that_asks_for_more_than_its_machines_have_is_refused() -> None:
    ranks = {"sft": {"train": {"sharding": {"ranks": 9}}}}
    check_run(run_of({"nodes": 2, "cpus_per_node": 9, "gpus_per_node": 8}, **ranks))
    check_run(run_of(**ranks))
    with pytest.raises(ConfigError, match=r"hardware: 1 x 17 CPUs, but sft asks for 18 = sft.train.sharding.ranks x"):
        check_run(run_of({"cpus_per_node": 17}, **ranks))
    with pytest.raises(ConfigError, match=r"^cluster.hardware: 1 x 8 GPUs, but sft asks for 9 at once; lower workers"):
        check_run(run_of({"gpus_per_node": 8}, **ranks))
    with pytest.raises(ConfigError, match=r"1 x 0 GPUs, but"):
        check_run(run_of({"gpus_per_node": 0}))
    check_run(run_of({"gpus_per_node": 1}, **ranks), machines=False)
