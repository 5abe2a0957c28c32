"""A schedule of one's own: as `sync`, and the metrics say how many samples this process has asked for.

ppo: {schedule: "my_extensions.schedule:Counted"}
"""

from __future__ import annotations

from cai_dist.coordinator.rollout_phase import Rollout
from cai_dist.coordinator.schedules.protocol import ScheduleContext
from cai_dist.coordinator.schedules.sync import Sync
from cai_dist.coordinator.state import PpoState


class Counted(Sync):
    """`sync` with `sync_samples` in the metrics of every iteration."""

    def __init__(self, context: ScheduleContext) -> None:
        super().__init__(context)
        self._samples = 0

    def rollout(self, state: PpoState) -> Rollout:
        found = super().rollout(state)
        self._samples += len(found.trajectory_refs)
        return found

    def transfer(self, version: int) -> dict[str, float]:
        return super().transfer(version) | {"samples": float(self._samples)}
