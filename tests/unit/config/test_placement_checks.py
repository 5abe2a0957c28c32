"""Roles that share GPUs: what does not go together is refused in one line before anything starts."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cai_dist.cluster.ppo.specs import role_spec
from cai_dist.config.checks.placement import engine_problems
from cai_dist.config.checks.run import check_run, run_warnings
from cai_dist.config.engine import EngineConfig, VllmConfig
from cai_dist.config.run import ClusterConfig, RunConfig
from cai_dist.errors import ConfigError


def run_of(placement: dict[str, Any], **ppo: Any) -> RunConfig:
    """Lists become tuples, as `load_run` makes them."""
    if "share" in placement:
        placement = placement | {"share": tuple(tuple(group) for group in placement["share"])}
    return RunConfig.model_validate({"name": "x", "ppo": {"placement": placement, **ppo}})


HYBRID = {"mode": "hybrid", "share": [["policy", "rollout"], ["value", "reward", "reference"]]}
GPU = {role: {"gpus": 1} for role in ("policy", "value", "reference", "reward", "rollout")}


@pytest.mark.parametrize(
    "placement", [{}, {"mode": "colocated"}, HYBRID, GPU, GPU | HYBRID, GPU | {"mode": "colocated"}]
)
def test_the_three_modes_are_fine(placement: dict[str, Any]) -> None:
    check_run(run_of(placement))


@pytest.mark.parametrize(
    ("placement", "ppo", "line"),
    [
        ({"share": [["policy", "value"]]}, {}, r"share: only looked at with .*=hybrid; mode is separate"),
        ({"mode": "colocated", "share": [["policy", "value"]]}, {}, r"share: only looked at .* mode is colocated"),
        ({"mode": "hybrid"}, {}, r"share: missing with ppo.placement.mode=hybrid; give groups"),
        ({"mode": "hybrid", "share": [["policy"]]}, {}, r"share.0=\['policy'\]: must be two roles or more"),
        ({"mode": "hybrid", "share": [["policy", "value", "policy"]]}, {}, r"policy stands in it 2 times"),
        ({"mode": "hybrid", "share": [["policy", "value"], ["value", "reward"]]}, {}, r"value stands in it 2 times"),
        ({"mode": "colocated"}, {"schedule": "one_step_off"}, r"schedule=one_step_off: cannot be with .*=colocated"),
        (HYBRID, {"schedule": "one_step_off"}, r"schedule=one_step_off: cannot be with .*=hybrid"),
        (GPU | {"mode": "colocated", "policy": {"gpus": 2}}, {}, r"policy.gpus=2: must be at most 1"),
        (GPU | {"mode": "colocated", "reward": {}}, {}, r"reward.gpus=0: shares a GPU with policy"),
        (GPU | {"mode": "colocated"}, {"transfer": "broadcast"}, r"ppo.transfer=broadcast: must be object_store or"),
        ({"mode": "colocated"}, {"transfer": "cuda_ipc"}, r"ppo.transfer=cuda_ipc: policy and rollout must share GPUs"),
        (GPU, {"transfer": "cuda_ipc"}, r"ppo.transfer=cuda_ipc: policy and rollout must share GPUs"),
        (
            GPU | {"mode": "hybrid", "share": [["policy", "value"], ["rollout", "reward"]]},
            {"transfer": "cuda_ipc"},
            r"ppo.transfer=cuda_ipc: policy and rollout must share GPUs",
        ),
        (
            GPU | {"mode": "colocated", "rollout": {"gpus": 1, "workers": 3}},
            {"transfer": "cuda_ipc"},
            r"rollout.workers=3: must be ppo.policy.ranks=2 with",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line(placement: dict[str, Any], ppo: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        check_run(run_of(placement, **ppo))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("shared", [HYBRID, {"mode": "colocated"}])
def test_weights_may_stay_on_a_gpu_that_policy_and_rollout_share(shared: dict[str, Any]) -> None:
    check_run(run_of(GPU | shared | {"rollout": {"gpus": 1, "workers": 2}}, transfer="cuda_ipc"))


def test_an_unknown_role_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="'policy', 'value', 'reference', 'reward' or 'rollout'"):
        run_of({"mode": "hybrid", "share": [["policy", "critic"]]})


def test_rollout_with_gpus_of_its_own_may_work_at_the_same_time() -> None:
    share = [["policy", "value", "reward", "reference"]]
    config = run_of({"mode": "hybrid", "share": share}, schedule="one_step_off")
    check_run(config)
    assert config.ppo.shared_groups == (("policy", "value", "reward", "reference"),)
    assert config.ppo.rollout_alone


def test_colocated_shares_the_roles_that_there_are() -> None:
    assert run_of({"mode": "colocated"}).ppo.shared_groups == (("policy", "value", "reference", "reward", "rollout"),)
    small = run_of({"mode": "colocated"}, algorithm="reinforce++", lora={"rank": 2}).ppo
    assert small.shared_groups == (("policy", "reward", "rollout"),)
    assert run_of({}).ppo.shared_groups == ()


@pytest.mark.parametrize(
    ("placement", "ppo", "line"),
    [
        ({"value": {"gpus": 1}}, {"algorithm": "reinforce++"}, "ppo.placement.value: .* has no value model"),
        ({"reference": {"workers": 2}}, {"lora": {"rank": 4}}, "ppo.placement.reference: .* adapter off"),
        ({"reward": {"cpus": 9}}, {"rewards": ({"use": "pkg.x:f"},)}, "ppo.placement.reward: .* no preference model"),
        ({"reward_terms": {"cpus": 9}}, {}, "ppo.placement.reward_terms: .* no term of one's own"),
        (HYBRID, {"algorithm": "reinforce++"}, "ppo.placement.share: value in it .* has no value model"),
        (HYBRID, {"lora": {"rank": 4}}, "ppo.placement.share: reference in it .* adapter off"),
    ],
)  # fmt: skip
def test_the_place_of_a_role_that_a_run_has_not_is_a_warning(placement, ppo, line) -> None:
    """A run file extends one that has the role, and another algorithm is one line."""
    config = run_of(placement, **ppo)
    check_run(config)
    (found,) = run_warnings(config)
    assert re.match(line, found) and "not looked at, there are no such workers" in found
    assert not list(run_warnings(run_of({}, **ppo)))


def test_a_group_counts_the_roles_that_there_are() -> None:
    """Of [rollout, value] without a value model one is left, and it shares with nobody."""
    config = run_of({"mode": "hybrid", "share": [["rollout", "value"], ["policy", "reward"]]}, algorithm="reinforce++")
    assert config.ppo.shared_groups == (("policy", "reward"),) and config.ppo.rollout_alone
    check_run(config)
    lonely = run_of(GPU | {"mode": "hybrid", "share": [["rollout", "value"]]}, algorithm="reinforce++")
    assert lonely.ppo.shared_groups == () and role_spec("rollout", lonely.ppo, lonely.engine, {}).share == ""


def test_ranks_are_said_once() -> None:
    """A trained role's workers are its ranks, and beside it on its GPUs stand as many of the others."""
    trained = {"policy": {"ranks": 4}, "value": {"ranks": 4}}
    ppo = run_of(GPU | {"mode": "colocated"}, **trained, transfer="cuda_ipc").ppo
    check_run(run_of(GPU | {"mode": "colocated"}, **trained, transfer="cuda_ipc"))
    assert [ppo.workers_of(role) for role in ppo.roles] == [4] * 5
    assert [role_spec(role, ppo, EngineConfig(), {}).workers for role in ppo.roles] == [4] * 5
    hybrid = run_of(GPU | HYBRID, policy={"ranks": 4}, value={"ranks": 3}).ppo
    assert [hybrid.workers_of(role) for role in hybrid.roles] == [4, 3, 3, 3, 4]
    alone = run_of(GPU, **trained).ppo
    assert [alone.workers_of(role) for role in alone.roles] == [4, 4, 1, 1, 1]
    cpus = run_of({"mode": "colocated"}, **trained).ppo
    assert [cpus.workers_of(role) for role in cpus.roles] == [4, 4, 1, 1, 2], "nothing is shared on a CPU"
    said = run_of(GPU | {"mode": "colocated", "reward": {"gpus": 1, "workers": 2}}, **trained).ppo
    assert said.workers_of("reward") == 2


@pytest.mark.parametrize("workers", [1, 3])
def test_a_second_number_for_ranks_is_refused_where_it_is_another(workers: int) -> None:
    check_run(run_of({"policy": {"workers": 2}}))
    with pytest.raises(ConfigError, match=r"policy.workers=\d: leave it out; the ranks come from ppo.policy.ranks=2"):
        check_run(run_of({"policy": {"workers": workers}}))


def test_sharing_does_not_need_fewer_cpus() -> None:
    tight = {"name": "x", "cluster": {"num_cpus": 1.5}, "ppo": {"placement": {"mode": "colocated"}}}
    with pytest.raises(ConfigError, match="num_cpus=1.5: must be at least 2,"):
        check_run(RunConfig.model_validate(tight))


@pytest.mark.parametrize(
    ("placement", "cluster", "lines"),
    [
        ({"rollout": {"gpus": 1}}, {"gpus": 1}, []),
        ({}, {}, []),
        (GPU | {"mode": "colocated"}, {}, ["share their GPUs with nobody: set ppo.placement.mode=separate"]),
        ({"rollout": {"gpus": 0.5}}, {"gpus": 2}, ["rollout.gpus=0.5: must be 0 or 1", "cluster.gpus=2: must be 0 or"]),
    ],
)
def test_engines_of_several_processes_have_whole_gpus_of_their_own(
    placement: dict[str, Any], cluster: dict[str, Any], lines: list[str]
) -> None:
    run = run_of(placement).model_copy(
        update={
            "engine": EngineConfig(backend="vllm", vllm=VllmConfig(tensor_parallel=2)),
            "cluster": ClusterConfig.model_validate(cluster),
        }
    )
    found = list(engine_problems(run))
    assert len(found) == len(lines) and all(part in line for part, line in zip(lines, found, strict=True))
    assert list(engine_problems(run.model_copy(update={"engine": EngineConfig()}))) == []
    if lines:
        with pytest.raises(ConfigError, match=r"an engine is 2 processes"):
            check_run(run, ready=False)


def test_placement_of_a_stage_that_a_run_lacks_is_not_looked_at() -> None:
    run = run_of(GPU | {"mode": "colocated"}).model_copy(
        update={"engine": EngineConfig(backend="vllm", vllm=VllmConfig(tensor_parallel=2)), "alignment": "dpo"}
    )
    assert "ppo" not in run.stages and list(engine_problems(run)) == []
