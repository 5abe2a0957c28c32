"""One iteration of PPO, the real coordinator on real actors, under every ZeRO stage and on one rank or two: the same
samples, the same losses, the same policy after it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cai_dist.cluster.ppo_groups import PpoGroups, PpoModels
from cai_dist.cluster.runtime import Cluster
from cai_dist.config.run import PlacementConfig, PpoConfig, RoleShards
from cai_dist.config.training import OptimizerConfig, SamplingConfig, ShardingConfig
from cai_dist.coordinator import loop
from cai_dist.coordinator.prompts import TokenizedPrompt
from cai_dist.models.load import load_scalar
from cai_dist.tracking.checkpoints import CheckpointStore
from tests.integration.conftest import TIMEOUTS
from tests.tiny import END, VOCAB, save_llama


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> PpoModels:
    policy = save_llama(tmp_path_factory.mktemp("policy"), tied=False, seed=1)
    reward = str(tmp_path_factory.mktemp("reward"))
    load_scalar(policy, "fp32", seed=5).hf.save_pretrained(reward)
    return PpoModels(policy=policy, reference=policy, reward=reward, value=reward)


def one_iteration(
    cluster: Cluster, models: PpoModels, folder: Path, zero: int, ranks: int
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics and the policy's weights after one iteration of 6 ragged samples in two mini-batches."""
    few = PlacementConfig(cpus=0.1)
    shard = ShardingConfig(ranks=ranks, zero=zero, micro_batch=1)  # type: ignore[arg-type]
    config = PpoConfig(
        iterations=1,
        prompts_per_iteration=8,
        mini_batch=4,
        epochs=1,
        policy=shard,
        value=shard,
        policy_optimizer=OptimizerConfig(lr=0.01),
        value_optimizer=OptimizerConfig(lr=0.01),
        sampling=SamplingConfig(max_new_tokens=8, temperature=0.7),
        placement=RoleShards(policy=few, value=few, reference=few, reward=few, rollout=few),
    )
    rng = random.Random(0)
    prompts = [
        TokenizedPrompt(f"p{i}", kind, tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 9))))
        for kind in ("red_team", "helpful")
        for i in range(6)
    ]
    logged: dict[str, Any] = {}
    made = PpoGroups(
        cluster, config, models, dtype="fp32", end_id=END, policy_steps=2, value_steps=2, seed=0, timeouts=TIMEOUTS
    )
    with made as roles:
        loop.train(
            roles, prompts, config, seed=3, stop_ids=(END,),
            checkpoints=CheckpointStore(folder / "checkpoints"), log=lambda step, **numbers: logged.update(numbers),
            should_stop=lambda: False,
        )  # fmt: skip
        roles.export(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    return logged, {name: tensor.detach() for name, tensor in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sharding_changes_nothing(cluster: Cluster, models: PpoModels, tmp_path: Path) -> None:
    start = dict(AutoModelForCausalLM.from_pretrained(models.policy).named_parameters())
    expected: tuple[dict[str, float], dict[str, torch.Tensor]] | None = None
    for zero, ranks in ((0, 1), (0, 2), (1, 2), (2, 2), (3, 2)):
        metrics, weights = one_iteration(cluster, models, tmp_path / f"zero{zero}x{ranks}", zero, ranks)
        assert all(not torch.equal(weights[name], start[name]) for name in start), "every tensor must have moved"
        if expected is None:
            expected = metrics, weights
            continue
        for name in ("score", "reward", "policy_loss", "value_loss", "policy_grad_norm", "value_grad_norm"):
            assert metrics[name] == pytest.approx(expected[0][name], rel=1e-4, abs=1e-6), (zero, ranks, name)
        for name, tensor in weights.items():
            # Adam's first steps have the size of the rate, whatever the gradient: a tenth of it is rounding of signs
            torch.testing.assert_close(tensor, expected[1][name], rtol=1e-4, atol=1e-3)
