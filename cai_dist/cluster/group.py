"""A group of workers of one role: one call per rank, results in order, a deadline on every wait."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from cai_dist.cluster.placement import release
from cai_dist.cluster.wait import Call, Pending, gather, next_done


@dataclass(frozen=True)
class Member:
    """One worker: its actor and the address of its node."""

    actor: Any
    node: str


class WorkerGroup:
    """Made by :meth:`cai_dist.cluster.runtime.Cluster.launch`. `timeout` (seconds) bounds every call.

    All methods raise WorkerError (a worker failed or died), WorkerTimeout, or the UserError that a worker raised. After
    one of the first two the group is of no further use: close it.
    """

    def __init__(self, role: str, members: Sequence[Member], placement: Any, timeout: float) -> None:
        self.role = role
        self.timeout = timeout
        self._members = tuple(members)
        self._placement = placement
        self._closed = False

    def __len__(self) -> int:
        return len(self._members)

    def call(self, rank: int, phase: str, method: str, *args: Any) -> Call:
        """Start `method(*args)` on one rank. Arguments that are Ray references arrive as what they stand for."""
        member = self._members[rank]
        return Call(member.actor.call.remote(phase, method, *args), phase, self.role, rank, member.node)

    def start(self, phase: str, method: str, shards: Sequence[Any], *args: Any) -> Pending[list[Any]]:
        """Start `method(shard, *args)` on every rank, shard r on rank r."""
        if len(shards) != len(self):
            raise ValueError(f"{len(shards)} shards for {len(self)} workers of {self.role}")
        calls = [self.call(rank, phase, method, shard, *args) for rank, shard in enumerate(shards)]
        return Pending(calls, self.timeout, list)

    def scatter(self, phase: str, method: str, shards: Sequence[Any], *args: Any) -> list[Any]:
        """`start` and wait: one result per rank."""
        return self.start(phase, method, shards, *args).result()

    def broadcast(self, phase: str, method: str, *args: Any) -> list[Any]:
        """`method(*args)` on every rank: one result per rank."""
        return gather([self.call(rank, phase, method, *args) for rank in range(len(self))], self.timeout)

    def deal(self, phase: str, method: str, items: Sequence[Any]) -> Pending[list[Any]]:
        """Start `method(item)` for every item, dealt out over the workers in turn: one result per item."""
        calls = [self.call(i % len(self), phase, method, item) for i, item in enumerate(items)]
        return Pending(calls, self.timeout, list)

    def map(self, phase: str, method: str, items: Sequence[Any], *args: Any) -> Iterator[tuple[int, Any]]:
        """`method(item, *args)` for every item, each on the next free worker; yields (index, result) as they finish."""
        left = iter(enumerate(items))
        running: dict[Any, tuple[Call, int]] = {}
        free = list(range(len(self)))
        while True:
            while free and (item := next(left, None)) is not None:
                call = self.call(free.pop(0), phase, method, item[1], *args)
                running[call.ref] = call, item[0]
            if not running:
                return
            done, result = next_done([call for call, _ in running.values()], self.timeout)
            _, index = running.pop(done.ref)
            free.append(done.rank)
            yield index, result

    def close(self) -> None:
        """End the processes and give their resources back. May be called twice."""
        if self._closed or not ray.is_initialized():
            return
        self._closed = True
        for member in self._members:
            ray.kill(member.actor, no_restart=True)
        release({self.role: self._placement})
