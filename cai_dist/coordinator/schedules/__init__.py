"""When samples are generated: one file a schedule."""

from __future__ import annotations

from cai_dist.coordinator.schedules.one_step_off import OneStepOff
from cai_dist.coordinator.schedules.partial import Partial
from cai_dist.coordinator.schedules.protocol import Schedule, ScheduleContext
from cai_dist.coordinator.schedules.sync import Sync

__all__ = ["ScheduleContext", "Schedule", "make_schedule"]


def make_schedule(job: ScheduleContext) -> Schedule:
    """The schedule that `ppo.schedule` names."""
    schedules: dict[str, type[Sync] | type[OneStepOff] | type[Partial]] = {
        "sync": Sync,
        "one_step_off": OneStepOff,
        "partial": Partial,
    }
    return schedules[job.config.schedule](job)
