"""PPO on real actors with rollouts by vLLM: after three updates and transfers it still says what the policy says."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cai_dist.cluster.ppo.groups import PpoGroups, PpoModels
from cai_dist.config.engine import EngineConfig
from cai_dist.config.placement import PlacementConfig, RoleShards
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.run import TimeoutsConfig
from cai_dist.config.training import OptimizerConfig, SamplingConfig, ShardingConfig
from cai_dist.coordinator import loop
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.engines.factory import build_rollout_engine
from cai_dist.models.load import load_scalar
from cai_dist.tracking.checkpoints import CheckpointStore
from cai_dist.types import GenerateRequest, SamplingParams, Trajectory
from tests.ids import response_of
from tests.vllm.lab import END, VLLM, VOCAB, random_prompts, save_model, saved

TWO = VLLM.model_copy(update={"vllm": VLLM.vllm.model_copy(update={"tensor_parallel": 2})})
FEW = PlacementConfig(cpus=0.1)
CONFIG = PpoConfig(
    iterations=3,
    prompts_per_iteration=8,
    mini_batch=8,
    epochs=1,
    policy=ShardingConfig(ranks=2, zero=3, micro_batch=4),
    value=ShardingConfig(ranks=1, micro_batch=8),
    policy_optimizer=OptimizerConfig(lr=0.01, grad_clip=10.0),
    value_optimizer=OptimizerConfig(lr=0.01),
    sampling=SamplingConfig(max_new_tokens=8, temperature=0.7),
    placement=RoleShards(
        policy=FEW, value=FEW, reference=FEW, reward=FEW, rollout=PlacementConfig(workers=1, cpus=0.1)
    ),
)


@pytest.mark.parametrize(
    ("engine", "kind"), [(VLLM, "tied"), (TWO, "tied"), (TWO, "mixtral")], ids=["one process", "tp 2", "mixtral, tp 2"]
)
def test_three_updates_and_transfers(cluster: Any, tmp_path: Path, engine: EngineConfig, kind: str) -> None:
    policy = saved(kind, tmp_path / "policy", seed=0)
    reward = str(tmp_path / "reward")
    load_scalar(save_model(tmp_path / "trunk", tied=True, seed=3), "fp32", seed=5).hf.save_pretrained(reward)
    models = PpoModels(policy=policy, reference=policy, reward=reward, value=reward)
    rng = random.Random(0)
    prompts = [
        TokenizedPrompt(f"{kind}{i}", kind, tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 9))))
        for kind in ("red_team", "helpful")
        for i in range(5)
    ]
    gaps: list[float] = []

    def watch(iteration: int, batch: Sequence[Trajectory]) -> None:
        gaps.append(max(abs(a - b) for t in batch for a, b in zip(t.old_logprobs, t.sampler_logprobs, strict=True)))

    asked, greedy = random_prompts(64), SamplingParams(16, 0.0, 1.0, (END,))
    timeouts = TimeoutsConfig(start=200.0, call=120.0, collective=60.0)
    with PpoGroups(
        cluster, CONFIG, models, dtype="fp32", end_id=END, policy_steps=3, value_steps=3, seed=0, timeouts=timeouts,
        engine=engine,
    ) as roles:  # fmt: skip
        loop.train(
            roles, prompts, CONFIG, seed=3, stop_ids=(END,), checkpoints=CheckpointStore(tmp_path / "checkpoints"),
            log=lambda step, **numbers: None, should_stop=lambda: False, on_rollout=watch,
        )  # fmt: skip
        roles.sync_weights(9)
        found = roles.fetch([sample.row for sample in roles.generate(asked, greedy, 0).result()])
        roles.export(tmp_path / "trained")
    print("largest difference of sampler and trainer, by iteration:", [f"{gap:.1e}" for gap in gaps])
    assert len(gaps) == CONFIG.iterations and max(gaps) < 1e-3

    def hf(folder: str) -> list[tuple[int, ...]]:
        engine = build_rollout_engine(EngineConfig(), "fp32")
        engine.load(folder)
        return [response_of(s) for s in engine.generate(GenerateRequest(asked, greedy, 0))]

    assert {(s.engine, s.weight_version) for s in found} == {("vllm", 9)}
    same = sum(response_of(s) == expected for s, expected in zip(found, hf(str(tmp_path / "trained")), strict=True))
    moved = sum(response_of(s) != before for s, before in zip(found, hf(policy), strict=True))
    print(f"greedy after three updates: {same} of 64 the same; {moved} differ from before the updates")
    assert same >= 0.95 * len(asked) and moved > len(asked) / 2
