"""`one_step_off`: the sampler works on the next iteration while the policy learns from this one.

    rollout            [generate k+1, weights k         ]                      [generate k+2, weights k+1
    policy and value   [score k] [update k -> weights k+1]                     [score k+1] [update k+1
    reference, reward                 [score k+1 as it comes]                          [score k+2 as it
    transfer                                             [samples k+1 are there; k+1]

Samples of iteration k are of weights max(k - 1, 0): one update behind, the first two iterations at none and one. The
trainer's log-probabilities are recomputed with weights k, each token weighs min(p_trainer / p_sampler, cap). Before
generation of k + 1 begins, a few short samples of weights k show whether sampler and trainer agree (`probe`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai_dist.config.seeds import derive_seed
from cai_dist.coordinator.mismatch_probe import Probe
from cai_dist.coordinator.protocols import PendingParts
from cai_dist.coordinator.rollout_phase import Rollout, evaluate
from cai_dist.coordinator.sample_requests import asked_for, check_samples, sampling_params
from cai_dist.coordinator.schedules.protocol import ScheduleContext, sample_from_dict, sample_to_dict
from cai_dist.coordinator.score_requests import Chunks, FrozenScores
from cai_dist.coordinator.state import PpoState
from cai_dist.types import Generation, SampleRef

STALENESS = 1
"""Updates that samples may be behind the weights that learn from them."""


class _UnderWay:
    """The samples of the next iteration; where `PpoConfig.looks_ahead`, the roles that do not learn are asked about
    each chunk of them as soon as it is there and somebody looks."""

    def __init__(
        self, job: ScheduleContext, samples: PendingParts, prompts: Sequence[tuple[int, ...]], version: int
    ) -> None:
        self._job, self._samples = job, samples
        self._chunks = Chunks(prompts, job.config, version)
        self._fixed: dict[int, FrozenScores] = {}

    def look(self) -> None:
        """Ask about what has come since the last look; waits for nothing."""
        for first, part in self._samples.ready():
            self._add(first, part)

    def result(self) -> _Ready:
        """Wait for the samples, not for what is said of them."""
        for first, part in self._samples.parts():
            self._add(first, part)
        return _Ready(self._chunks.samples(), self._fixed)

    def _add(self, first: int, part: Sequence[SampleRef]) -> None:
        for start, chunk in self._chunks.add(first, part):
            if self._job.config.looks_ahead:
                self._fixed[start] = FrozenScores.ask(self._job.roles, chunk, self._job.config)


@dataclass(frozen=True)
class _Ready:
    """Samples that wait for their iteration, and who has been asked about them."""

    samples: list[SampleRef]
    fixed: Mapping[int, FrozenScores]


class OneStepOff:
    """The schedule `one_step_off`: at most one iteration's samples are under way or waiting. None are generated for an
    iteration that will not be, so a run that is lengthened later begins its next iteration with samples of the newest
    weights."""

    def __init__(self, job: ScheduleContext) -> None:
        self._job = job
        self._under_way: _UnderWay | None = None
        self._ready: _Ready | None = None
        self._restored: list[Generation] | None = None

    def rollout(self, state: PpoState) -> Rollout:
        """Set the sampler to work on the next iteration, and score what it made for this one."""
        began = time.perf_counter()
        job = self._job
        asked = asked_for(job.prompts, job.config, job.seed, state.iteration)
        ids = [prompt.ids for prompt in asked]
        if self._restored is not None:
            self._ready, self._restored = _Ready(job.roles.hold(ids, self._restored), {}), None
        if self._ready is None:
            self._start(state.iteration, state.weight_version)
            self._wait()
        assert self._ready is not None
        ready, self._ready = self._ready, None
        samples = ready.samples
        check_samples(samples, ids, state.weight_version, STALENESS)
        probe = None
        if any(sample.oldest_version < state.weight_version for sample in samples):
            job.roles.enter("rollout")
            probe = Probe.start(job.roles, asked, job.config, job.stop_ids, state, job.seed)
        if state.iteration + 1 < job.config.iterations:
            self._start(state.iteration + 1, state.weight_version)
        return evaluate(job.roles, asked, samples, job.config, state, began, ready.fixed, probe)

    def meanwhile(self) -> None:
        """Let the next samples be scored as far as they are there."""
        if self._under_way is not None:
            self._under_way.look()

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
            ready = self._job.roles.fetch([sample.row for sample in self._ready.samples])
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
        self._under_way = _UnderWay(job, samples, ids, version)

    def _wait(self) -> None:
        if self._under_way is None:
            return
        self._ready, self._under_way = self._under_way.result(), None
