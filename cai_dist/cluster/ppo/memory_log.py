"""Peak memory of every worker, phase by phase: asked for while the work goes on, taken when it has come."""

from __future__ import annotations

from collections.abc import Mapping

import ray
from ray.exceptions import RayError

from cai_dist.cluster.futures import Call
from cai_dist.cluster.group import WorkerGroup

_SECONDS = 10.0
"""For an answer that has been reported as ready."""


_FIRST, _EVERY = 2, 10
"""Iterations whose phases are told apart: the first ones, and then each of so many. To ask every worker four times in
every iteration would be a third of all calls."""
WHOLE = "iteration"
"""In place of a phase: the peak of a whole iteration."""


class MemoryLog:
    """Reads the meters of all workers, in some iterations at the end of each phase, in the others once. A worker reads
    its own once it has done what it was asked before; nobody waits for it. A reading that fails is left out: the call
    that shows why is another one."""

    def __init__(self, groups: Mapping[str, WorkerGroup]) -> None:
        self._groups = groups
        self._calls: list[tuple[str, Call]] = []
        self._recent: dict[str, float] = {}
        self._transfers = 0
        self.peaks: dict[str, dict[str, float]] = {}
        """Role -> phase -> MiB: the largest peak of a worker so far, on the GPU where the role has one."""

    @property
    def by_phase(self) -> bool:
        """Whether the phases of the iteration under way are told apart."""
        return self._transfers <= _FIRST or self._transfers % _EVERY == 0

    def ends(self, phase: str) -> None:
        """Where phases are told apart: have every worker read its meter, and start the next peak."""
        by_phase = self.by_phase
        self._transfers += phase == "transfer"
        if not by_phase:
            return
        self._calls += [
            (phase, group.call(rank, "memory", "memory"))
            for group in self._groups.values()
            for rank in range(len(group))
        ]

    def note(self, role: str, reading: Mapping[str, float]) -> None:
        """The reading of a worker for all that it did since its last."""
        self._note(role, WHOLE, reading)

    def recent(self) -> dict[str, float]:
        """`memory_<role>_mb` (on a GPU also `gpu_memory_<role>_mb`): the largest peak among the readings that have come
        since this was last asked."""
        self._take()
        recent, self._recent = self._recent, {}
        return recent

    def _take(self) -> None:
        refs = [call.ref for _, call in self._calls]
        ready = set(ray.wait(refs, num_returns=len(refs), timeout=0)[0]) if refs else set()
        for phase, call in self._calls:
            if call.ref in ready:
                try:
                    self._note(call.role, phase, ray.get(call.ref, timeout=_SECONDS))
                except RayError:
                    continue
        self._calls = [(phase, call) for phase, call in self._calls if call.ref not in ready]

    def _note(self, role: str, phase: str, reading: Mapping[str, float]) -> None:
        for name, key in (("peak_mb", f"memory_{role}_mb"), ("gpu_peak_mb", f"gpu_memory_{role}_mb")):
            if name in reading:
                self._recent[key] = max(self._recent.get(key, 0.0), reading[name])
        phases = self.peaks.setdefault(role, {})
        phases[phase] = max(phases.get(phase, 0.0), reading.get("gpu_peak_mb", reading.get("peak_mb", 0.0)))


def peak_rows(peaks: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of a table role x phase, MiB."""
    phases = list(dict.fromkeys(phase for of_role in peaks.values() for phase in of_role))
    rows = [
        [role, *(f"{of_role[phase]:.0f}" if phase in of_role else "-" for phase in phases)]
        for role, of_role in peaks.items()
    ]
    return ["role", *phases], rows
