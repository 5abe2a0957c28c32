"""What the loop asks of a schedule, and what a schedule is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cai_dist.config.ppo import PpoConfig
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.coordinator.protocols import PpoRoles
from cai_dist.coordinator.rollout_phase import Rollout
from cai_dist.coordinator.state import PpoState
from cai_dist.types import Generation


@dataclass(frozen=True)
class ScheduleContext:
    """What stays the same over a run."""

    roles: PpoRoles
    prompts: Sequence[TokenizedPrompt]
    config: PpoConfig
    stop_ids: tuple[int, ...]
    seed: int


class Schedule(Protocol):
    """Order of use: `restore` where a checkpoint is continued; `transfer`; then in each iteration `rollout`, `transfer`
    and, where a checkpoint is due, `carried`."""

    @property
    def meanwhile(self) -> Callable[[], None] | None:
        """Work to be called again and again while the update is waited for; waits for nothing itself."""
        ...

    def rollout(self, state: PpoState) -> Rollout:
        """The samples of the next iteration, scored. Raises DataError, StaleEngineError, CaiError, WorkerError,
        WorkerTimeout."""
        ...

    def transfer(self, version: int) -> dict[str, float]:
        """Give the sampler the policy's weights, after whatever it has under way; then nothing is under way. Returns
        seconds and bytes. Raises as `rollout` does."""
        ...

    def carried(self) -> dict[str, Any] | None:
        """JSON of the samples that wait for a later iteration; None for a schedule that carries none."""
        ...

    def restore(self, carried: dict[str, Any]) -> None:
        """Go on from `carried`. Raises KeyError, TypeError or ValueError for anything else."""
        ...


def sample_to_dict(sample: Generation) -> dict[str, Any]:
    """JSON-ready: arrays as lists; a float32 survives JSON exactly."""
    fields = {name: getattr(sample, name) for name in Generation.__dataclass_fields__}
    return {name: value.tolist() if name in Generation.ARRAYS else value for name, value in fields.items()}


def sample_from_dict(fields: dict[str, Any]) -> Generation:
    """The inverse of `sample_to_dict`; raises KeyError, TypeError or ValueError for anything else."""
    return Generation(**fields)
