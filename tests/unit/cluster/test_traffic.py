"""What the driver sends and how often it asks: as much as is needed, at any number of workers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from cai_dist.cluster import futures
from cai_dist.cluster.futures import Call, PendingCallParts, PendingCalls, gather
from cai_dist.errors import WorkerError, WorkerTimeout


class FakeRay:
    """`ready[i]`: references that have ended by the i-th question that waits; counts references looked at."""

    def __init__(self, *ready: set[int], failing: int = -1) -> None:
        self._ready, self._failing, self.looks = list(ready), failing, 0
        self._now: set[int] = set()

    def wait(self, refs: Sequence[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        self.looks += len(refs)
        if timeout and self._ready:
            self._now |= self._ready.pop(0)
        found = [ref for ref in reversed(refs) if ref in self._now][:num_returns]
        return found, [ref for ref in refs if ref not in found]

    def get(self, ref: Any) -> Any:
        if isinstance(ref, list):
            return [self.get(one) for one in ref]
        if ref == self._failing:
            raise RayTaskError("f", "traceback", ValueError("broken"))
        return 10 * ref


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeRay) -> None:
    monkeypatch.setattr(futures.ray, "wait", fake.wait)
    monkeypatch.setattr(futures.ray, "get", fake.get)


def calls(n: int) -> list[Call]:
    return [Call(ref, "update", "policy", ref, "here") for ref in range(n)]


def test_answers_come_in_order_whoever_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeRay({2}, {0, 3}, {1}))
    assert gather(calls(4), 9.0) == [0, 10, 20, 30]
    use(monkeypatch, FakeRay({2}, {0, 3}, {1}))
    each = list(PendingCalls(calls(4), 9.0, list).each())
    assert each == [(2, 20), (0, 0), (3, 30), (1, 10)]


def test_a_thousand_answers_are_not_half_a_million_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(set(range(500)), set(range(1000)))
    use(monkeypatch, fake)
    assert gather(calls(1000), 9.0) == [10 * ref for ref in range(1000)]
    assert fake.looks == 2 * 1000 + 2 * 500


def test_the_first_error_is_raised_while_others_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeRay({1, 2}, failing=2))
    with pytest.raises(WorkerError, match="broken") as caught:
        gather(calls(4), 9.0)
    assert caught.value.rank == 2


def test_no_answer_in_time_names_the_ranks_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeRay({0, 2}))
    with pytest.raises(WorkerTimeout, match="rank 1, 3"):
        gather(calls(4), 9.0)


def test_something_else_is_done_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeRay(set(), set(), {0}, {0, 1}))
    looks: list[int] = []
    assert PendingCalls(calls(2), 9.0, list).result(lambda: looks.append(1)) == [0, 10]
    assert len(looks) == 2


def test_what_is_done_meanwhile_does_not_move_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeRay())
    with pytest.raises(WorkerTimeout, match="rank 0, 1"):
        PendingCalls(calls(2), 0.1, list).result(lambda: time.sleep(0.03))


def test_nodes_are_watched_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that hangs with its node is found by looking at nodes, however often something else is done."""

    class Watch:
        headless = False

        def loss(self, pending: Sequence[Call]) -> Exception:
            return WorkerError("update", "policy", 1, "there", "the node is gone")

    use(monkeypatch, FakeRay())
    monkeypatch.setattr(futures.node_watch, "current", Watch)
    monkeypatch.setattr(futures, "_SLICE", 0.05)
    with pytest.raises(WorkerError, match="the node is gone"):
        gather(calls(2), 9.0, lambda: None)


def test_parts_that_are_there_are_given_once_and_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay({2}, {0, 1, 2})
    use(monkeypatch, fake)
    parts = PendingCallParts(PendingCalls(calls(3), 9.0, list), [0, 5, 10], lambda number, answer: [answer])
    assert parts.ready() == []
    fake.wait([0, 1, 2], 1, 1.0)
    assert parts.ready() == [(10, [20])] and parts.ready() == []
    assert list(parts.parts()) == [(0, [0]), (5, [10])]
    assert parts.ready() == [] and parts.result() == [0, 10, 20]
