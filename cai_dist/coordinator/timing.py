"""Spans, who did what when: those of all workers and of the driver, iteration by iteration."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from cai_dist.coordinator.protocols import PpoRoles
from cai_dist.types import Span

DRIVER = "coordinator"
OnSpans = Callable[[int, Sequence[Span]], None]


class Stopwatch:
    """Order of use: `begin` before the first iteration, `phase` any number of times, `finish` at the end of each
    iteration, `rest` at the end of all."""

    def __init__(self, roles: PpoRoles, on_spans: OnSpans | None) -> None:
        """`on_spans` is called with (iterations finished, spans) by each `finish`."""
        self._roles, self._on_spans = roles, on_spans
        self._own: list[Span] = []
        self._began = time.time()

    def begin(self) -> None:
        """The first iteration begins: what was before is told, but is no part of any role's idle time."""
        self._began = time.time()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A span of the driver, around what it does and waits for."""
        start = time.time()
        try:
            yield
        finally:
            self._own.append(Span(DRIVER, 0, name, start, time.time()))

    def finish(self, iteration: int) -> dict[str, float]:
        """Collect what the workers have done since the last call; returns `idle_<role>`, the shares of that time in
        which they did nothing. `iteration`: the number finished."""
        end = time.time()
        spans = self._roles.spans()
        if self._on_spans is not None:
            self._on_spans(iteration, [*self._own, *spans])
        began, self._began, self._own = self._began, end, []
        return idle_shares(spans, began, end)

    def rest(self, iteration: int) -> None:
        """Hand on what came after the last `finish`."""
        if self._own and self._on_spans is not None:
            self._on_spans(iteration, [*self._own, *self._roles.spans()])
        self._own = []


def idle_shares(spans: Sequence[Span], start: float, end: float) -> dict[str, float]:
    """Per role `idle_<role>`: 1 - the share of start..end in which a worker is in a call, mean over the workers that
    were in any. A worker that waits for another inside a collective counts as busy."""
    if end <= start:
        return {}
    of_worker: defaultdict[str, defaultdict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for span in spans:
        of_worker[span.role][span.rank].append((max(span.start, start), min(span.end, end)))
    return {
        f"idle_{role}": 1.0 - sum(map(_covered, workers.values())) / len(workers) / (end - start)
        for role, workers in of_worker.items()
    }


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
