"""A small PPO run on fakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cai_dist.config.ppo import KlConfig, PpoConfig
from cai_dist.config.training import SamplingConfig, ShardingConfig
from cai_dist.coordinator.loop import train
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.coordinator.rollout_phase import Rollout
from cai_dist.coordinator.state import PpoState
from cai_dist.experience.moments import Moments
from cai_dist.tracking.checkpoints import CheckpointStore
from cai_dist.types import PromptKind, Trajectory, TrajectoryRef, rows_of
from tests.fakes import FakeRoles

STOP = 9


def make_prompts(red_team: int, helpful: int) -> list[TokenizedPrompt]:
    """Prompts of ragged lengths, no two with the same ids."""

    def some(kind: PromptKind, count: int, first: int) -> list[TokenizedPrompt]:
        return [TokenizedPrompt(f"{kind}-{n}", kind, (first, n, *range(n % 3))) for n in range(count)]

    return some("red_team", red_team, 1) + some("helpful", helpful, 2)


def make_config(**changes: object) -> PpoConfig:
    settings: dict[str, object] = {
        "iterations": 6,
        "prompts_per_iteration": 4,
        "samples_per_prompt": 2,
        "helpful_fraction": 0.4,
        "epochs": 2,
        "mini_batch": 4,
        "policy": ShardingConfig(ranks=2, micro_batch=2),
        "value": ShardingConfig(ranks=2, micro_batch=2),
        "kl": KlConfig(coefficient=0.1, target=0.05, horizon=20),
        "sampling": SamplingConfig(max_new_tokens=6),
        "value_warmup": 1,
        "checkpoint_every": 1,
    }
    return PpoConfig.model_validate({**settings, **changes})


@dataclass
class Record:
    """What a run did, by iteration; what is done twice is written twice."""

    trajectories: dict[int, tuple[Trajectory, ...]] = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)

    def on_rollout(self, iteration: int, trajectories: Sequence[Trajectory]) -> None:
        self.trajectories[iteration] = tuple(trajectories)

    def log(self, step: int, **numbers: float) -> None:
        self.metrics[step] = numbers

    def timeless(self) -> dict[int, dict[str, float]]:
        """The metrics without seconds."""
        return {
            step: {name: number for name, number in numbers.items() if not name.endswith("seconds")}
            for step, numbers in self.metrics.items()
        }


@dataclass
class Run:
    """Runs `train` in one folder, as often as asked, into one record."""

    folder: Path
    record: Record = field(default_factory=Record)

    def go(
        self,
        config: PpoConfig | None = None,
        roles: FakeRoles | None = None,
        seed: int = 3,
        should_stop: Callable[[], bool] = lambda: False,
        prompts: list[TokenizedPrompt] | None = None,
        snapshot: Callable[[int], None] | None = None,
    ) -> PpoState:
        roles, config = roles or FakeRoles(), config or make_config()
        roles.config = config
        return train(
            roles,
            prompts or make_prompts(7, 3),
            config,
            seed=seed,
            stop_ids=(STOP,),
            checkpoints=CheckpointStore(self.folder, keep=99),
            log=self.record.log,
            should_stop=should_stop,
            on_rollout=self.record.on_rollout,
            snapshot=snapshot,
        )


def rollout_of(items: Sequence[Trajectory]) -> Rollout:
    """As the update phase gets it, nothing to be whitened."""
    rows = rows_of(list(items), len(items))
    sizes = [(len(item.prompt_ids), len(item.response_ids)) for item in items]
    refs = tuple(TrajectoryRef(row, a + b, b) for row, (a, b) in zip(rows, sizes, strict=True))
    return Rollout(refs, tuple(items), None, 0.0, {}, Moments())
