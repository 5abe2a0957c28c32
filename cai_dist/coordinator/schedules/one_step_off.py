"""`one_step_off`: the sampler works on the next iteration while the policy learns from this one.

    rollout   [generate k+1, weights k        ]                       [generate k+2, weights k+1    ]
    scoring   [score k, weights k]
    training                      [update k -> weights k+1]
    transfer                                    [wait for generate k+1; version k+1]

Samples of iteration k are of weights max(k - 1, 0): one update behind, the first two iterations at none and one. The
trainer's log-probabilities are recomputed with weights k, each token weighs min(p_trainer / p_sampler, cap). Before
generation of k + 1 begins, a few short samples of weights k show whether sampler and trainer agree (`probe`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from cai_dist.coordinator.probe import Probe
from cai_dist.coordinator.prompts import derive_seed
from cai_dist.coordinator.protocols import PendingParts
from cai_dist.coordinator.rollout_phase import Rollout, evaluate
from cai_dist.coordinator.sampling import asked_for, check_samples, sampling_params
from cai_dist.coordinator.schedules.protocol import Job, sample_from_dict, sample_to_dict
from cai_dist.coordinator.state import PpoState
from cai_dist.types import Generation, Sample

STALENESS = 1
"""Updates that samples may be behind the weights that learn from them."""


@dataclass(frozen=True)
class _UnderWay:
    samples: PendingParts
    iteration: int
    version: int
    """Of the sampler's weights."""


class OneStepOff:
    """At most one iteration's samples are under way or waiting. None are generated for an iteration that will not be,
    so a run that is lengthened later begins its next iteration with samples of the newest weights."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._under_way: _UnderWay | None = None
        self._ready: list[Sample] | None = None
        self._restored: list[Generation] | None = None

    def rollout(self, state: PpoState) -> Rollout:
        """Set the sampler to work on the next iteration, and score what it made for this one."""
        began = time.perf_counter()
        job = self._job
        asked = asked_for(job.prompts, job.config, job.seed, state.iteration)
        ids = [prompt.ids for prompt in asked]
        if self._restored is not None:
            self._ready, self._restored = job.roles.hold(ids, self._restored), None
        if self._ready is None:
            self._start(state.iteration, state.weight_version)
            self._wait()
        assert self._ready is not None
        samples, self._ready = self._ready, None
        check_samples(samples, ids, state.weight_version, STALENESS)
        probe = None
        if any(sample.oldest_version < state.weight_version for sample in samples):
            job.roles.enter("rollout")
            probe = Probe.start(job.roles, asked, job.config, job.stop_ids, state, job.seed)
        if state.iteration + 1 < job.config.iterations:
            self._start(state.iteration + 1, state.weight_version)
        rollout = evaluate(job.roles, asked, samples, job.config, state, began)
        if probe is not None:
            rollout.metrics.update(probe.metrics(job.roles, job.config))
        return rollout

    def transfer(self, version: int) -> dict[str, float]:
        """Wait for the samples that are under way, then policy -> sampler."""
        began = time.perf_counter()
        self._wait()
        waited = time.perf_counter() - began
        self._job.roles.enter("transfer")
        return {**self._job.roles.sync_weights(version), "wait_seconds": waited}

    def carried(self) -> dict[str, Any] | None:
        """The samples of the next iteration."""
        ready = self._restored
        if self._ready is not None:
            ready = self._job.roles.fetch([sample.row for sample in self._ready])
        return {"ready": None if ready is None else [sample_to_dict(sample) for sample in ready]}

    def restore(self, carried: dict[str, Any]) -> None:
        """Go on from `carried`."""
        ready = carried["ready"]
        self._restored = None if ready is None else [sample_from_dict(fields) for fields in ready]

    def _start(self, iteration: int, version: int) -> None:
        job = self._job
        ids = [prompt.ids for prompt in asked_for(job.prompts, job.config, job.seed, iteration)]
        job.roles.enter("rollout")
        samples = job.roles.generate(
            ids, sampling_params(job.config, job.stop_ids), derive_seed(job.seed, "rollout", iteration)
        )
        self._under_way = _UnderWay(samples, iteration, version)

    def _wait(self) -> None:
        if self._under_way is None:
            return
        under_way, job = self._under_way, self._job
        samples = under_way.samples.result()
        asked = asked_for(job.prompts, job.config, job.seed, under_way.iteration)
        check_samples(samples, [prompt.ids for prompt in asked], under_way.version)
        self._ready, self._under_way = samples, None
