"""When samples are generated: one file a schedule."""

from __future__ import annotations

from collections.abc import Callable

from cai_dist.coordinator.schedules.one_step_off import OneStepOff
from cai_dist.coordinator.schedules.partial import Partial
from cai_dist.coordinator.schedules.protocol import Schedule, ScheduleContext
from cai_dist.coordinator.schedules.sync import Sync
from cai_dist.registry import Registry, Signature

__all__ = ["SCHEDULES", "Schedule", "ScheduleContext", "make_schedule"]

SCHEDULES: Registry[Callable[[ScheduleContext], Schedule]] = Registry(
    "ppo.schedule",
    {"sync": lambda: Sync, "one_step_off": lambda: OneStepOff, "partial": lambda: Partial},
    Signature(("context",), protocol=Schedule),
)


def make_schedule(context: ScheduleContext) -> Schedule:
    """The schedule that `ppo.schedule` names. Raises ConfigError."""
    return SCHEDULES.resolve(context.config.schedule)(context)
