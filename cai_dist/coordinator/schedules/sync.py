"""`sync`: one thing after the other; samples are always of the weights that learn from them.

rollout   [generate k]                           [generate k+1]
scoring      [score k]                               [score k+1]        (streamed: begins with the first samples)
training                [update k]
transfer                          [version k+1]
"""

from __future__ import annotations

from typing import Any

from cai_dist.coordinator import rollout_phase
from cai_dist.coordinator.rollout_phase import Rollout
from cai_dist.coordinator.schedules.protocol import ScheduleContext
from cai_dist.coordinator.state import PpoState


class Sync:
    """Nothing is carried from one iteration to the next."""

    meanwhile = None

    def __init__(self, job: ScheduleContext) -> None:
        self._job = job

    def rollout(self, state: PpoState) -> Rollout:
        """Generate with the present weights, and score."""
        job = self._job
        return rollout_phase.collect(job.roles, job.prompts, job.config, job.stop_ids, state, job.seed)

    def transfer(self, version: int) -> dict[str, float]:
        """Policy -> sampler."""
        self._job.roles.enter("transfer")
        return self._job.roles.sync_weights(version)

    def carried(self) -> dict[str, Any] | None:
        """Nothing."""
        return None

    def restore(self, carried: dict[str, Any]) -> None:
        """Raises ValueError: there is nothing to go on from."""
        raise ValueError("schedule sync carries nothing")
