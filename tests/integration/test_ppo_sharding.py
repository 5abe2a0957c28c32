"""One iteration of PPO, the real coordinator on real actors, on one rank and on two: the same samples, the same losses,
the same policy after it. ZeRO-1 to 3 are compared with plain torch in test_reference_ppo.py."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cai_dist.cluster.ppo.groups import PpoGroups, PpoModels
from cai_dist.config.placement import PlacementConfig, RoleShards
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.training import OptimizerConfig, SamplingConfig, ScoringConfig, ShardingConfig
from cai_dist.coordinator import loop
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.models.load import load_scalar
from cai_dist.tracking.checkpoints import CheckpointStore
from tests.integration.conftest import TIMEOUTS
from tests.integration.warm import WarmCluster
from tests.tiny import END, VOCAB, save_llama


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> PpoModels:
    policy = save_llama(tmp_path_factory.mktemp("policy"), tied=False, seed=1)
    reward = str(tmp_path_factory.mktemp("reward"))
    load_scalar(policy, "fp32", seed=5).hf.save_pretrained(reward)
    return PpoModels(policy=policy, reference=policy, reward=reward, value=reward)


def one_iteration(
    warm: WarmCluster, models: PpoModels, folder: Path, zero: int, ranks: int, **settings: Any
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics and the policy's weights after one iteration of 8 ragged samples in two mini-batches."""
    few = PlacementConfig(cpus=0.1)
    optimizer = OptimizerConfig(lr=settings.pop("lr", 0.01))
    own = {name: settings.pop(name) for name in ("gradient_checkpointing", "sequence_parallel") if name in settings}
    shard = ShardingConfig(ranks=ranks, zero=zero, micro_batch=1, **own)  # type: ignore[arg-type]
    config = PpoConfig(
        iterations=1,
        prompts_per_iteration=8 // settings.get("samples_per_prompt", 1),
        mini_batch=4,
        epochs=1,
        policy=shard,
        value=shard,
        policy_optimizer=optimizer,
        value_optimizer=optimizer,
        sampling=SamplingConfig(max_new_tokens=8, temperature=0.7),
        placement=RoleShards(policy=few, value=few, reference=few, reward=few, rollout=few),
        **settings,
    )
    rng = random.Random(0)
    prompts = [
        TokenizedPrompt(f"p{i}", kind, tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 9))))
        for kind in ("red_team", "helpful")
        for i in range(6)
    ]
    logged: dict[str, Any] = {}
    made = PpoGroups(
        warm, config, models, dtype="fp32", end_id=END, policy_steps=2, value_steps=2, seed=0, timeouts=TIMEOUTS
    )
    with made as roles:
        assert set(made._groups) == set(config.roles), "no group is started that the algorithm does not need"
        loop.train(
            roles, prompts, config, seed=3, stop_ids=(END,),
            checkpoints=CheckpointStore(folder / "checkpoints"), log=lambda step, **numbers: logged.update(numbers),
            should_stop=lambda: False,
        )  # fmt: skip
        roles.export(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    return logged, {name: tensor.detach() for name, tensor in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_second_rank_changes_nothing(warm: WarmCluster, models: PpoModels, tmp_path: Path) -> None:
    start = dict(AutoModelForCausalLM.from_pretrained(models.policy).named_parameters())
    expected: tuple[dict[str, float], dict[str, torch.Tensor]] | None = None
    for ranks in (1, 2):
        metrics, weights = one_iteration(warm, models, tmp_path / f"ranks{ranks}", 0, ranks)
        assert all(not torch.equal(weights[name], start[name]) for name in start), "every tensor must have moved"
        if expected is None:
            expected = metrics, weights
            continue
        for name in ("score", "reward", "policy_loss", "value_loss", "policy_grad_norm", "value_grad_norm"):
            assert metrics[name] == pytest.approx(expected[0][name], rel=1e-4, abs=1e-6), name
        for name, tensor in weights.items():
            # Adam's first steps have the size of the rate, whatever the gradient: a tenth of it is rounding of signs
            torch.testing.assert_close(tensor, expected[1][name], rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_scoring_models_in_two_parts_and_layers_computed_twice_change_nothing(
    warm: WarmCluster, models: PpoModels, tmp_path: Path
) -> None:
    plain = one_iteration(warm, models, tmp_path / "plain", 3, 2)
    sharded = {"reference": ScoringConfig(ranks=2), "reward": ScoringConfig(ranks=2)}
    metrics, weights = one_iteration(warm, models, tmp_path / "parts", 3, 2, gradient_checkpointing=True, **sharded)
    for name, tensor in weights.items():
        assert torch.equal(tensor, plain[1][name]), name
    timings = {name for name in metrics if name.endswith(("seconds", "_mb", "_per_second")) or name.startswith("idle")}
    assert {k: v for k, v in metrics.items() if k not in timings} == {
        k: v for k, v in plain[0].items() if k not in timings
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_ranks_that_compute_sequences_together_do_what_one_does(
    warm: WarmCluster, models: PpoModels, tmp_path: Path
) -> None:
    """Every figure of the iteration, to 1e-5: the scoring passes of policy and value, losses, norms of gradients."""
    alone, expected = one_iteration(warm, models, tmp_path / "one", 0, 1, lr=1e-3)
    together, weights = one_iteration(warm, models, tmp_path / "two", 2, 2, sequence_parallel=2, lr=1e-3)
    other = ("seconds", "_mb", "_per_second", "sync_calls")
    names = {name for name in alone if not name.endswith(other) and not name.startswith("idle")}
    assert {"policy_loss", "value_loss", "policy_grad_norm", "value_grad_norm", "policy_ratio", "reward"} <= names
    for name in names:
        assert together[name] == pytest.approx(alone[name], rel=1e-5, abs=1e-5), name
    for name, tensor in weights.items():
        # Adam's first steps have the size of the rate, whatever the gradient: a tenth of it is rounding of signs
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-4)


EVERYTHING = {
    "clip_high": 0.28,
    "dual_clip": 3.0,
    "entropy_bonus": 0.01,
    "importance_cap": 2.0,
    "target_kl": 10.0,
    "missing_eos_penalty": 0.1,
    "score_normalization": "running",
}
"""Settings that every algorithm knows."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("algorithm", ["ppo", "reinforce++", "grpo", "gspo"])
def test_every_kind_of_algorithm_trains_under_zero_2(
    algorithm: str, warm: WarmCluster, models: PpoModels, tmp_path: Path
) -> None:
    """With every term of the loss: with a value model, without, and in groups (the others differ from these on the
    driver alone). GRPO, whose loss has all terms (the KL too), and GSPO, whose ratio is one a response, are compared
    with a single rank."""
    start = dict(AutoModelForCausalLM.from_pretrained(models.policy).named_parameters())
    settings = EVERYTHING | {"algorithm": algorithm, "samples_per_prompt": 2}
    metrics, weights = one_iteration(warm, models, tmp_path / "two", zero=2, ranks=2, **settings)
    assert all(not torch.equal(weights[name], start[name]) for name in start), "every tensor must have moved"
    assert all(map(math.isfinite, metrics.values()))
    # A geometric mean over a response is below the mean of its tokens, which is 1 on average.
    far = 0.5 if algorithm == "gspo" else 0.2
    assert metrics["policy_steps"] == 2 and metrics["policy_ratio"] == pytest.approx(1.0, abs=far)
    assert ("value_loss" in metrics) == (algorithm == "ppo")
    assert ("policy_kl" in metrics) == (algorithm in ("grpo", "gspo"))
    assert metrics["policy_entropy"] > 0 and metrics["importance_ess"] == pytest.approx(1.0, abs=1e-4)
    if algorithm not in ("grpo", "gspo"):
        return
    alone, same = one_iteration(warm, models, tmp_path / "one", zero=0, ranks=1, **settings)
    for name in ("reward", "policy_loss", "policy_kl", "policy_entropy", "policy_approx_kl", "policy_grad_norm"):
        assert metrics[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-6), name
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, same[name], rtol=1e-4, atol=1e-3)
