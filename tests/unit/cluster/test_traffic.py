"""What the driver sends and how often it asks: as much as is needed, at any number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from cai_dist.cluster import wait
from cai_dist.cluster.wait import Call, Pending, gather
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
    monkeypatch.setattr(wait.ray, "wait", fake.wait)
    monkeypatch.setattr(wait.ray, "get", fake.get)


def calls(n: int) -> list[Call]:
    return [Call(ref, "update", "policy", ref, "here") for ref in range(n)]


def test_answers_come_in_order_whoever_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeRay({2}, {0, 3}, {1}))
    assert gather(calls(4), 9.0) == [0, 10, 20, 30]
    use(monkeypatch, FakeRay({2}, {0, 3}, {1}))
    each = list(Pending(calls(4), 9.0, list).each())
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
