"""Where the workers of PPO are changes nothing: on shared devices, phase by phase, they compute the same bits."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cai_dist.cluster.ppo.groups import PpoGroups, PpoModels
from cai_dist.cluster.runtime import Cluster, GroupSpec
from cai_dist.config.placement import PlacementConfig, RoleShards
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.training import OptimizerConfig, SamplingConfig, ShardingConfig
from cai_dist.coordinator import loop
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.errors import ConfigError, Interrupted
from cai_dist.models.load import load_scalar
from cai_dist.tracking.checkpoints import CheckpointStore
from cai_dist.types import WorkerSpec
from tests.integration.conftest import TIMEOUTS
from tests.integration.warm import WarmCluster
from tests.tiny import END, VOCAB, save_llama

FEW = PlacementConfig(cpus=0.1)
ADAM = OptimizerConfig(lr=3e-3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> PpoModels:
    policy = save_llama(tmp_path_factory.mktemp("policy"), tied=True, seed=1)
    reward = str(tmp_path_factory.mktemp("reward"))
    load_scalar(save_llama(tmp_path_factory.mktemp("trunk"), tied=False, seed=2), "fp32", 5).hf.save_pretrained(reward)
    return PpoModels(policy=policy, reference=policy, reward=reward, value=reward)


def config(mode: str, policy_zero: int, value_zero: int, **placement: Any) -> PpoConfig:
    roles = dict.fromkeys(("policy", "value", "reference", "reward", "rollout"), FEW)
    return PpoConfig(
        iterations=2,
        prompts_per_iteration=6,
        mini_batch=6,
        epochs=2,
        checkpoint_every=1,
        policy=ShardingConfig(ranks=2, zero=policy_zero, micro_batch=2),  # type: ignore[arg-type]
        value=ShardingConfig(ranks=2, zero=value_zero, micro_batch=2),  # type: ignore[arg-type]
        policy_optimizer=ADAM,
        value_optimizer=ADAM,
        sampling=SamplingConfig(max_new_tokens=6),
        placement=RoleShards(mode=mode, **roles, **placement),  # type: ignore[arg-type]
    )


def run(
    cluster: WarmCluster, models: PpoModels, ppo: PpoConfig, folder: Path, stop_after: int | None = None
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]], PpoGroups]:
    """The policy after the run, what was logged, and the groups (closed)."""
    rng = random.Random(0)
    prompts = [
        TokenizedPrompt(f"{kind}{i}", kind, tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 7))))  # type: ignore[arg-type]
        for kind in ("red_team", "helpful")
        for i in range(4)
    ]
    logged: list[dict[str, float]] = []
    with PpoGroups(
        cluster, ppo, models, dtype="fp32", end_id=END, policy_steps=8, value_steps=8, seed=0, timeouts=TIMEOUTS
    ) as roles:
        loop.train(
            roles,
            prompts,
            ppo,
            seed=3,
            stop_ids=(END, 9, 15),
            checkpoints=CheckpointStore(folder / "checkpoints"),
            log=lambda step, **numbers: logged.append(numbers | roles.memory()),
            should_stop=lambda: stop_after is not None and len(logged) >= stop_after,
        )
        roles.export(folder / "model")
        roles.memory()
    return load_file(folder / "model" / "model.safetensors"), logged, roles


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


Trained = tuple[dict[str, torch.Tensor], list[dict[str, float]]]


@pytest.fixture(scope="module")
def apart(warm: WarmCluster, models: PpoModels, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What the policy is after a run of workers that share nothing, and what was logged."""
    policy, logged, _ = run(warm, models, config("separate", 3, 2), tmp_path_factory.mktemp("apart"))
    return policy, logged


def test_colocated_trains_the_policy_that_separate_does(
    warm: WarmCluster, models: PpoModels, apart: Trained, tmp_path: Path
) -> None:
    together, moved, roles = run(warm, models, config("colocated", 3, 2), tmp_path / "together")
    policy, metrics = apart
    assert same(policy, together)
    assert not same(policy, load_file(Path(models.policy) / "model.safetensors"))
    for name in ("score", "kl_per_response", "policy_loss", "value_loss", "policy_grad_norm"):
        assert [line[name] for line in moved] == [line[name] for line in metrics]
    assert {seat.share for seat in roles.seats} == {"policy"}
    assert set(roles.memory_peaks) == {"policy", "value", "reference", "reward", "rollout"}
    assert {"rollout", "score", "update", "transfer"} <= set(roles.memory_peaks["policy"])
    assert moved[-1]["memory_policy_mb"] > 1


@pytest.mark.full
def test_colocated_trains_the_policy_that_separate_does_with_whole_weights(
    warm: WarmCluster, models: PpoModels, tmp_path: Path
) -> None:
    policy, _, _ = run(warm, models, config("separate", 1, 3), tmp_path / "apart")
    together, _, roles = run(warm, models, config("colocated", 1, 3), tmp_path / "together")
    assert same(policy, together)
    # On a CPU the transfer hands the policy's memory out as numpy arrays: torch then lets it not be given up.
    assert roles.notes and all(n.startswith("policy: ") and "of its weights" in n for n in roles.notes)


def test_a_stopped_hybrid_run_goes_on_as_if_nothing_had_been(
    warm: WarmCluster, models: PpoModels, apart: Trained, tmp_path: Path
) -> None:
    share = (("policy", "rollout"), ("value", "reward", "reference"))
    ppo = config("hybrid", 3, 2, share=share)
    with pytest.raises(Interrupted):
        run(warm, models, ppo, tmp_path / "hybrid", stop_after=1)
    resumed, logged, roles = run(warm, models, ppo, tmp_path / "hybrid")
    assert len(logged) == 1
    assert same(apart[0], resumed)
    assert {seat.role: seat.share for seat in roles.seats} == {role: group[0] for group in share for role in group}


def test_what_the_cluster_cannot_hold_is_refused_at_once(cluster: Cluster) -> None:
    spec = WorkerSpec("tests.integration.lab:Trouble", {})
    pair = [GroupSpec("a", spec, workers=2, cpus=0.5, gpus=1.0, share="s"), GroupSpec("b", spec, gpus=0.5, share="s")]
    with pytest.raises(ConfigError, match=r"2 x a\+b \(0.75 CPU, 1 GPU or 0.5 CPU, 1 GPU\) but the cluster has 0 GPU"):
        cluster.launch(pair)
    with pytest.raises(ConfigError, match="has 8 CPU of 12 asked"):
        cluster.launch([GroupSpec("a", spec, workers=2, cpus=6.0)])
    # Nothing stayed reserved, and roles of one group leave it one by one.
    groups = cluster.launch([GroupSpec("a", spec, workers=1, cpus=3.0), GroupSpec("b", spec, workers=1, cpus=3.0)])
    for group in groups.values():
        group.close()
