"""Schedules on real actors: a killed one_step_off run ends as if it had not been; streaming changes rounding alone,
and not from run to run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray

from cai_dist.cluster.ppo.groups import PpoGroups, PpoModels
from cai_dist.config.placement import PlacementConfig, RoleShards
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.training import OptimizerConfig, SamplingConfig, ShardingConfig
from cai_dist.coordinator import loop
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.coordinator.rollout_phase import collect
from cai_dist.coordinator.score_requests import chunk_size
from cai_dist.coordinator.state import PpoState
from cai_dist.errors import WorkerError
from cai_dist.models.load import load_scalar
from cai_dist.tracking.checkpoints import CheckpointStore
from cai_dist.types import Span, Trajectory
from tests.integration.conftest import TIMEOUTS
from tests.integration.warm import WarmCluster
from tests.tiny import END, VOCAB, save_llama

STEPS = 6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> PpoModels:
    policy = save_llama(tmp_path_factory.mktemp("policy"), tied=False, seed=1)
    reward = str(tmp_path_factory.mktemp("reward"))
    load_scalar(policy, "fp32", seed=5).hf.save_pretrained(reward)
    return PpoModels(policy=policy, reference=policy, reward=reward, value=reward)


def config_of(**changes: Any) -> PpoConfig:
    few = PlacementConfig(cpus=0.1)
    shard = ShardingConfig(ranks=1, micro_batch=2)
    return PpoConfig(
        iterations=3, prompts_per_iteration=6, mini_batch=3, epochs=1, policy=shard, value=shard,
        policy_optimizer=OptimizerConfig(lr=0.01), value_optimizer=OptimizerConfig(lr=0.01),
        sampling=SamplingConfig(max_new_tokens=8), rollout_batch=2, checkpoint_every=1,
        placement=RoleShards(policy=few, value=few, reference=few, reward=few, rollout=few),
        **changes,
    )  # fmt: skip


def make_prompts() -> list[TokenizedPrompt]:
    rng = random.Random(0)
    return [
        TokenizedPrompt(f"{kind}{i}", kind, tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 9))))
        for kind in ("red_team", "helpful")
        for i in range(5)
    ]


def groups(cluster: WarmCluster, models: PpoModels, config: PpoConfig) -> PpoGroups:
    return PpoGroups(
        cluster, config, models, dtype="fp32", end_id=END, policy_steps=STEPS, value_steps=STEPS, seed=0,
        timeouts=TIMEOUTS,
    )  # fmt: skip


@dataclass
class Seen:
    """What a run did, by iteration."""

    trajectories: dict[int, tuple[Trajectory, ...]] = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)

    def train(self, roles: PpoGroups, config: PpoConfig, folder: Path, at: Callable[[int], None]) -> None:
        def on_rollout(iteration: int, batch: Sequence[Trajectory]) -> None:
            self.trajectories[iteration] = tuple(batch)
            at(iteration)

        loop.train(
            roles, make_prompts(), config, seed=3, stop_ids=(END,), checkpoints=CheckpointStore(folder),
            log=lambda step, **numbers: self.metrics.update({step: numbers}), should_stop=lambda: False,
            on_rollout=on_rollout, on_spans=lambda iteration, spans: self.spans.extend(spans),
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_one_step_off_run_ends_as_if_it_had_not_been(
    warm: WarmCluster, models: PpoModels, tmp_path: Path
) -> None:
    config = config_of(schedule="one_step_off")
    whole, parts = Seen(), Seen()
    with groups(warm, models, config) as roles:
        whole.train(roles, config, tmp_path / "whole", lambda iteration: None)
    assert [{item.weight_version for item in whole.trajectories[k]} for k in range(3)] == [{0}, {0}, {1}]
    assert all(0 < whole.metrics[step]["mismatch_max"] < 1e-4 for step in (1, 2, 3))
    assert whole.metrics[3]["offpolicy_mean"] > 1e-4 and whole.metrics[3]["staleness_max"] == 1
    assert {span.role for span in whole.spans} == {*config.roles, "coordinator"}
    assert all(0 <= whole.metrics[2][f"idle_{role}"] <= 1 for role in config.roles)

    with groups(warm, models, config) as roles:

        def kill(iteration: int) -> None:
            if iteration == 2:  # while policy and value are about to learn, with the state of iteration 2 saved
                ray.kill(roles._groups["policy"]._members[0].actor)  # SIGKILL

        with pytest.raises(WorkerError, match="policy"):
            parts.train(roles, config, tmp_path / "parts", kill)
    del parts.trajectories[2]
    with groups(warm, models, config) as roles:
        parts.train(roles, config, tmp_path / "parts", lambda iteration: None)
    assert parts.trajectories == whole.trajectories
    assert parts.metrics[3]["policy_loss"] == whole.metrics[3]["policy_loss"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_streaming_changes_no_number(warm: WarmCluster, models: PpoModels) -> None:
    config = config_of()
    assert config.streams and chunk_size(config) < config.prompts_per_iteration
    plain = config.model_copy(update={"stream": False})
    state = PpoState.start(config)
    with groups(warm, models, config) as roles:
        roles.sync_weights(0)
        first, again, whole = (
            collect(roles, make_prompts(), one, (END,), state, 3).trajectories[:] for one in (config, config, plain)
        )
    assert first == again == whole
