"""A group of workers of one role: one call per rank, results in order, a deadline on every wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from cai_dist.cluster import node_watch
from cai_dist.cluster.actor import Arrival, asked
from cai_dist.cluster.futures import UNKNOWN, Call, PendingCalls, first_ready, gather, translated
from cai_dist.cluster.node_watch import WorkerAddress, WorkerRegistry
from cai_dist.cluster.placement import release
from cai_dist.types import RemoteRow, Span, rows_of

_GET_SECONDS = 60.0
"""For an answer that has been reported as ready."""


@dataclass(frozen=True)
class Member:
    """One worker: its actor, the address of its node and Ray's id of that."""

    actor: Any
    node: str
    node_id: str = ""


@dataclass(frozen=True)
class Report:
    """What one worker did since it was last asked, and its memory."""

    spans: list[Span]
    memory: dict[str, float]


@dataclass(frozen=True)
class Starting:
    """A worker under way: its actor, and the Ray references of its `Arrival` and of the end of its building."""

    actor: Any
    node: Any
    built: Any


@dataclass(frozen=True)
class Starter:
    """How a worker is started once more, in the place (bundle, resources) and from the spec of its rank, and how many
    seconds it may take."""

    start: Callable[[int], Starting]
    timeout: float


class WorkerGroup:
    """The workers of one role, made by :meth:`cai_dist.cluster.runtime.Cluster.launch`. `timeout` (seconds) bounds
    every call.

    All methods raise WorkerError (a worker failed or died), WorkerTimeout, or the UserError that a worker raised. After
    one of the first two the group is of no further use: close it. But where its workers do not know each other there
    is a `starter`, and a `WorkQueue` over the group starts them again.

    `roster`: all workers of the same launch.
    """

    def __init__(
        self,
        role: str,
        members: Sequence[Member],
        placement: Any,
        timeout: float,
        starter: Starter | None = None,
        roster: WorkerRegistry | None = None,
    ) -> None:
        self.role = role
        self.timeout = timeout
        self._roster = roster or WorkerRegistry()
        for rank, member in enumerate(members):
            self._roster.enter(WorkerAddress(role, rank, member.node, member.node_id))
        self._members = dict(enumerate(members))
        self._placement = placement
        self._starter = starter
        self._places = len(members)
        self._starting: dict[int, Starting] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._members)

    @property
    def members(self) -> list[Member]:
        """The workers that are up, by rank."""
        return [self._members[rank] for rank in self.ranks]

    @property
    def placement(self) -> Any:
        """The place of the workers: a :class:`cai_dist.cluster.placement.Placement`."""
        return self._placement

    @property
    def nodes(self) -> frozenset[str]:
        """Addresses of the nodes that the workers are on."""
        return frozenset(member.node for member in self._members.values())

    def kept(self, rank: int, ref: Any, count: int) -> list[RemoteRow[Any]]:
        """The `count` rows that this rank keeps under `ref`."""
        return rows_of(ref, count, self.role, rank, self._members[rank].node)

    def holds(self, version: int) -> None:
        """The workers have weights of this version; errors say so."""
        self._roster.versions[self.role] = version

    def call(self, rank: int, phase: str, method: str, *args: Any) -> Call:
        """Start `method(*args)` on one rank. Arguments that are Ray references arrive as what they stand for."""
        member = self._members[rank]
        ref = member.actor.call.remote(*asked(phase, method, args))
        return Call(ref, phase, self.role, rank, member.node, self._roster)

    def start(self, phase: str, method: str, shards: Sequence[Any], *args: Any) -> PendingCalls[list[Any]]:
        """Start `method(shard, *args)` on every rank, shard r on rank r."""
        if len(shards) != len(self):
            raise ValueError(f"{len(shards)} shards for {len(self)} workers of {self.role}")
        calls = [self.call(rank, phase, method, shard, *args) for rank, shard in enumerate(shards)]
        return PendingCalls(calls, self.timeout, list)

    def scatter(self, phase: str, method: str, shards: Sequence[Any], *args: Any) -> list[Any]:
        """`start` and wait: one result per rank."""
        return self.start(phase, method, shards, *args).result()

    def broadcast(self, phase: str, method: str, *args: Any) -> list[Any]:
        """`method(*args)` on every rank: one result per rank."""
        return gather([self.call(rank, phase, method, *args) for rank in range(len(self))], self.timeout)

    def deal(self, phase: str, method: str, items: Sequence[Any]) -> PendingCalls[list[Any]]:
        """Start `method(item)` for every item, dealt out over the workers in turn: one result per item."""
        calls = [self.call(i % len(self), phase, method, item) for i, item in enumerate(items)]
        return PendingCalls(calls, self.timeout, list)

    # ---- for a queue of work: workers one by one

    @property
    def ranks(self) -> list[int]:
        """The workers that are up."""
        return sorted(self._members)

    @property
    def start_timeout(self) -> float:
        """Seconds that one worker may take to be up again."""
        return self._starter.timeout if self._starter else 0.0

    def wait(self, calls: Sequence[Call], timeout: float) -> list[Call]:
        """The `calls` that have ended; at least one unless `timeout` seconds pass first."""
        if first_ready(calls, timeout, replaceable=True) is None:
            return []
        refs = [call.ref for call in calls]
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return [call for call in calls if call.ref in ready]

    def result(self, call: Call) -> Any:
        """Result of a call that has ended; where it is one of `start_worker`, its worker is up now. Raises WorkerDied
        where the worker or its answer is gone (NodeLost where its node is, or does not answer), and as all methods
        do."""
        begun = self._starting.get(call.rank)
        try:
            value = ray.get(call.ref, timeout=_GET_SECONDS)
            if begun is not None and begun.built == call.ref:
                arrival: Arrival = ray.get(begun.node, timeout=_GET_SECONDS)
                self._members[call.rank] = Member(begun.actor, arrival.node, arrival.node_id)
                self._roster.enter(WorkerAddress(self.role, call.rank, arrival.node, arrival.node_id))
                del self._starting[call.rank]
        except RayError as error:
            raise translated(call, error) from None
        return value

    def start_worker(self, rank: int) -> Call:
        """Begin to start a worker in the place `rank`, which must be empty; `result` of the call takes it in. Raises
        ValueError where there is no such place, or where the workers are one process group; NodeLost without a head."""
        if self._starter is None or rank not in range(self._places) or rank in (*self._members, *self._starting):
            raise ValueError(f"{self.role}: no worker can be started in place {rank}")
        starter = self._starter
        begun = self._starting[rank] = node_watch.ask_head("start", lambda: starter.start(rank))
        return Call(begun.built, "start", self.role, rank, UNKNOWN)

    def kill(self, rank: int) -> None:
        """End the process of one worker, up or still starting: its answers are lost and its place is empty. Raises
        NodeLost without a head."""
        found = (self._members.pop(rank, None), self._starting.pop(rank, None))
        self._roster.posts.pop((self.role, rank), None)
        for worker in [worker for worker in found if worker is not None]:
            node_watch.ask_head("end", partial(ray.kill, worker.actor, no_restart=True))

    def report(self, memory: bool = False) -> PendingCalls[list[Report]]:
        """Ask what every worker has done since this was last asked, and where wanted for its reading of memory."""
        calls = [
            Call(member.actor.report.remote(memory), "timeline", self.role, rank, member.node, self._roster)
            for rank, member in self._members.items()
        ]
        ranks = [call.rank for call in calls]

        def read(found: list[Any]) -> list[Report]:
            return [
                Report([Span(self.role, rank, *span) for span in spans], reading)
                for rank, (spans, reading) in zip(ranks, found, strict=True)
            ]

        return PendingCalls(calls, self.timeout, read)

    def close(self) -> None:
        """End the processes and give their resources back. May be called twice. Raises NodeLost without a head."""
        if self._closed or not ray.is_initialized():
            return
        self._closed = True
        self._roster.leave(self.role)
        if (watch := node_watch.current()) is not None and watch.headless:
            return  # nobody is there to take an order; the processes end by themselves, for want of a head
        for rank in range(self._places):
            self.kill(rank)
        node_watch.ask_head("end", lambda: release({self.role: self._placement}))
