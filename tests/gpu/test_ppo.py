"""All five roles of PPO on one GPU."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cai_dist.cluster.ppo.groups import PpoGroups, PpoModels
from cai_dist.cluster.runtime import Cluster
from cai_dist.config.placement import PlacementConfig, RoleShards
from cai_dist.config.ppo import PpoConfig, TransferBackend
from cai_dist.config.training import OptimizerConfig, SamplingConfig, ShardingConfig
from cai_dist.coordinator import loop
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.errors import CaiError
from cai_dist.models.load import load_scalar
from cai_dist.tracking.checkpoints import CheckpointStore
from tests.gpu.conftest import TIMEOUTS, skip_where_unshared
from tests.tiny import END, VOCAB

ON_GPU = PlacementConfig(cpus=0.1, gpus=1.0, workers=1)
ROLES = ("policy", "value", "reference", "reward", "rollout")
MISMATCH = 0.05
"""nats: bound on the mean difference of a token's log-probability between sampler and trainer in bf16."""
WIDE = LlamaConfig(
    vocab_size=VOCAB, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=4, max_position_embeddings=128, bos_token_id=1, eos_token_id=END, pad_token_id=0,
    tie_word_embeddings=True,
)  # fmt: skip
WEIGHTS_MB = 2 * (8 * 512 * (3 * 512 + 3 * 1408) + VOCAB * 512) / 2**20
"""Of its matrices in bf16: queries and output 512 x 512, keys and values 512 x 256 each."""


def save_wide(folder: Path, seed: int) -> str:
    """A random model of which the weights are more than what CUDA's libraries keep for themselves."""
    torch.manual_seed(seed)
    LlamaForCausalLM(WIDE).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> PpoModels:
    policy, trunk = (save_wide(tmp_path_factory.mktemp("model"), seed) for seed in (1, 2))
    reward = str(tmp_path_factory.mktemp("reward"))
    load_scalar(trunk, "fp32", 5).hf.save_pretrained(reward)
    return PpoModels(policy=policy, reference=policy, reward=reward, value=reward)


def config(transfer: TransferBackend, zero: int) -> PpoConfig:
    sharding: dict[str, Any] = {"ranks": 1, "zero": zero, "max_tokens_per_micro_batch": 256}
    return PpoConfig(
        iterations=2,
        prompts_per_iteration=16,
        mini_batch=8,
        epochs=1,
        checkpoint_every=1,
        policy=ShardingConfig(**sharding),
        value=ShardingConfig(**sharding),
        policy_optimizer=OptimizerConfig(lr=1e-4),
        value_optimizer=OptimizerConfig(lr=1e-4),
        sampling=SamplingConfig(max_new_tokens=16),
        transfer=transfer,
        placement=RoleShards(mode="colocated", **dict.fromkeys(ROLES, ON_GPU)),
    )


@pytest.mark.parametrize(("transfer", "zero"), [("object_store", 1), ("cuda_ipc", 1), ("cuda_ipc", 3)])
def test_colocated_ppo_takes_turns_on_the_gpu(
    cluster: Cluster, models: PpoModels, tmp_path: Path, transfer: TransferBackend, zero: int
) -> None:
    rng = random.Random(0)
    prompts = [
        TokenizedPrompt(f"{kind}{i}", kind, tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 9))))  # type: ignore[arg-type]
        for kind in ("red_team", "helpful")
        for i in range(8)
    ]
    logged: list[dict[str, float]] = []
    ppo = config(transfer, zero)
    with PpoGroups(
        cluster, ppo, models, dtype="bf16", end_id=END, policy_steps=4, value_steps=4, seed=0, timeouts=TIMEOUTS
    ) as roles:
        assert {seat.gpus for seat in roles.seats} == {roles.seats[0].gpus} and len(roles.seats[0].gpus) == 1
        try:
            loop.train(
                roles,
                prompts,
                ppo,
                seed=3,
                stop_ids=(END, 9),
                checkpoints=CheckpointStore(tmp_path / "checkpoints"),
                log=lambda step, **numbers: logged.append(numbers | roles.memory()),
                should_stop=lambda: False,
            )
        except CaiError as error:
            skip_where_unshared(error)
            raise
        roles.enter("transfer")
        roles.memory()
        notes, peaks = roles.notes, roles.memory_peaks
    assert len(logged) == 2
    assert all(math.isfinite(number) for line in logged for number in line.values())
    assert all(line["policy_grad_norm"] > 0 and line["mismatch_mean"] < MISMATCH for line in logged)
    assert notes == [], "on a GPU everything leaves"
    assert set(peaks) == set(ROLES)
    # A phase begins with what the one before has left. In the update there are fp32 masters and moments, six times the
    # weights; the reward model is there to score alone.
    assert peaks["policy"]["update"] - peaks["policy"]["rollout"] > 4 * WEIGHTS_MB
    assert peaks["reward"]["score"] - peaks["reward"]["rollout"] > 0.8 * WEIGHTS_MB
    assert any(line.get("gpu_memory_policy_mb", 0.0) > 0 for line in logged)


def test_torch_sees_the_gpu_that_ray_sees(cluster: Cluster) -> None:
    import ray

    assert ray.cluster_resources().get("GPU", 0) == torch.cuda.device_count()
