"""A durable queue of independent pieces of work: workers that die are started again, and what they had is given to
others.

For work that any worker of a group can do from the request alone (a data stage's generation and scoring). Not for
engines whose weights arrived by transfer, as in PPO: a new process would not have them.

    todo --> a free worker --> result --> the caller, once for each key
      ^          | process gone, node lost, deadline missed
      +----------+ at most `retries` times for each key; the worker is ended and a new one started in its place
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cai_dist.errors import NodeLost, UserError, WorkerDied, WorkerError, WorkerTimeout

_SLICE = 1.0
"""Seconds between two looks at whether the run is to stop, while no worker is up."""
_LOST_STARTS = 3
"""Nodes that a place may lose while its worker is starting."""


class Calling(Protocol):
    """A call under way, as `cai_dist.cluster.futures.Call`."""

    @property
    def rank(self) -> int: ...
    @property
    def node(self) -> str: ...


class WorkerPool(Protocol):
    """What the queue needs of a group; `WorkerGroup` in production. `timeout` and `start_timeout` are in seconds."""

    @property
    def role(self) -> str: ...
    @property
    def timeout(self) -> float: ...
    @property
    def start_timeout(self) -> float: ...
    @property
    def ranks(self) -> Sequence[int]:
        """The workers that are up."""

    def call(self, rank: int, phase: str, method: str, *args: Any) -> Calling:
        """Start a method on one worker."""

    def wait(self, calls: Sequence[Any], timeout: float) -> Sequence[Any]:
        """The `calls` that have ended, at least one unless `timeout` seconds pass first."""

    def result(self, call: Any) -> Any:
        """Result of a call that has ended. Raises UserError, WorkerDied, WorkerError."""

    def kill(self, rank: int) -> None:
        """End a worker's process."""

    def start_worker(self, rank: int) -> Calling:
        """Begin to start a worker in the place `rank`, which must be empty; it is up when the call has ended."""


@dataclass(frozen=True)
class Loss:
    """A worker that was lost. `again`: it is being started again; False: that has failed, and the others go on without
    it. `restarts`: how often a worker of this queue has been started again."""

    role: str
    rank: int
    node: str
    cause: str
    restarts: int
    again: bool


@dataclass(frozen=True)
class _Task:
    """A call with its deadline; `key` is empty where a worker is being started."""

    call: Calling
    key: str
    phase: str
    deadline: float


class WorkQueue:
    """Work for a group of independent workers. `retries`: how often a piece is given to another worker after the one
    that had it was lost; a piece that has lost one worker more than that ends the run.

    Args:
        lost: told of each worker that is lost, before it is started again.
        check: called before a worker is started again, and once a second while none is up; raises where the run is to
            stop (a signal to all processes ends workers, too).
        clock: monotonic seconds.
    """

    def __init__(
        self,
        group: WorkerPool,
        retries: int,
        *,
        lost: Callable[[Loss], None] = lambda loss: None,
        check: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group, self._retries, self._lost, self._check, self._clock = group, retries, lost, check, clock
        self._free = deque(group.ranks)
        self._starting: dict[int, _Task] = {}
        self._busy: dict[int, _Task] = {}
        self._todo: deque[str] = deque()
        self._failures: Counter[str] = Counter()
        self._lost_starts: Counter[int] = Counter()
        self._not_started: WorkerError | None = None
        self._node_lost: NodeLost | None = None
        self.restarts = 0
        """Workers that were lost and started again."""

    def map(self, phase: str, method: str, items: Mapping[str, Any], *args: Any) -> Iterator[tuple[str, Any]]:
        """`method(item, *args)` for every item, on whichever worker is free; yields (key, result) as they end, each key
        once. Keys stand in errors: let them say what the item is. One `map` at a time, and to its end: a queue whose
        `map` was left or failed is of no further use.

        Raises:
            UserError: a worker raised it; never tried again.
            WorkerError: a worker raised anything else (it would do so again), or an item was lost too often (says which
                item, on which worker and node, how often).
            WorkerTimeout: no worker is up, and none came up within `start_timeout`.
            Whatever `check` raises.
        """
        if self._busy:
            raise RuntimeError("an earlier map of this queue was not run to its end")
        self._todo, self._failures = deque(items), Counter()
        self._send(phase, method, items, args)
        while self._busy or self._todo:
            good, fatal = self._turn()
            if fatal is None:
                self._send(phase, method, items, args)  # before the caller is busy with what has ended
            yield from good
            if fatal is not None:
                raise fatal

    def add(self, rank: int) -> None:
        """Start a worker in the empty place `rank`; it takes part as soon as it is up. Raises ValueError if the place
        is taken."""
        if rank in self._busy or rank in self._starting or rank in self._free:
            raise ValueError(f"there is a worker {rank} of {self._group.role}")
        deadline = self._clock() + self._group.start_timeout
        self._starting[rank] = _Task(self._group.start_worker(rank), "", "start", deadline)

    def remove(self, rank: int) -> None:
        """End the worker `rank`; what it had in hand is done by another, which is no retry. Its answer, should one
        still come, is not looked at. Raises ValueError if there is no such worker."""
        if rank in self._busy:
            self._todo.appendleft(self._busy.pop(rank).key)
        elif rank in self._starting:
            del self._starting[rank]
        elif rank in self._free:
            self._free.remove(rank)
        else:
            raise ValueError(f"there is no worker {rank} of {self._group.role}")
        self._group.kill(rank)

    def _send(self, phase: str, method: str, items: Mapping[str, Any], args: Sequence[Any]) -> None:
        """Give every free worker something to do."""
        while self._todo and self._free:
            rank, key = self._free.popleft(), self._todo.popleft()
            where = f"{phase}, {key}"
            call = self._group.call(rank, where, method, items[key], *args)
            self._busy[rank] = _Task(call, key, where, self._clock() + self._group.timeout)

    def _turn(self) -> tuple[list[tuple[str, Any]], Exception | None]:
        """Wait until something has ended or is overdue, and settle all of it: results for the caller, and the error
        that is to end the run (after them: it must not cost another worker's result)."""
        ended, overdue = self._wait()
        good: list[tuple[str, Any]] = []
        failed: list[tuple[_Task, WorkerError | UserError]] = [(task, self._timeout(task)) for task in overdue]
        for task in ended:
            try:
                result = self._group.result(task.call)
            except (WorkerError, UserError) as error:
                failed.append((task, error))
                continue
            self._free.append(task.call.rank)
            if task.key:
                good.append((task.key, result))
        fatal: Exception | None = None
        for task, why in failed:
            try:
                self._failed(task, why)
            except Exception as end:
                fatal = fatal or end
        return good, fatal

    def _wait(self) -> tuple[list[_Task], list[_Task]]:
        """Tasks that have ended and tasks that have missed their deadline, at least one of either unless no worker is
        up; both are out of the books."""
        tasks = [*self._busy.values(), *self._starting.values()]
        if not tasks:
            raise self._nobody()
        left = max(0.0, min(task.deadline for task in tasks) - self._clock())
        if not self._busy:
            self._check()
            left = min(left, _SLICE)
        done = {id(call) for call in self._group.wait([task.call for task in tasks], left)}
        ended = [task for task in tasks if id(task.call) in done]
        overdue = [task for task in tasks if id(task.call) not in done and task.deadline <= self._clock()]
        for task in (*ended, *overdue):
            (self._busy if task.key else self._starting).pop(task.call.rank)
        return ended, overdue

    def _nobody(self) -> WorkerError:
        """Why no worker is up. Where nodes were lost, more of them may help: the run is to be gone on with."""
        if self._node_lost is not None and self._not_started is not None:
            why = f"{self._node_lost.cause}; no other node had room for its workers: {self._not_started.cause}"
            lost = self._node_lost
            return NodeLost(lost.phase, lost.role, lost.rank, lost.node, why, lost.weight_version, lost.detail)
        return self._not_started or WorkerError(
            "start", self._group.role, -1, "cluster", "every worker has been removed; none is left for the work"
        )

    def _timeout(self, task: _Task) -> WorkerTimeout:
        what, seconds = ("call", self._group.timeout) if task.key else ("start", self._group.start_timeout)
        cause = f"no answer within {seconds:g} s (cluster.timeouts.{what})"
        return WorkerTimeout(task.phase, self._group.role, task.call.rank, task.call.node, cause)

    def _failed(self, task: _Task, error: WorkerError | UserError) -> None:
        """What a failed call means. Raises `error` where nobody else would fare better."""
        rank = task.call.rank
        if isinstance(error, UserError):
            raise error
        if not task.key:
            self._not_up(rank, error)
            return
        if not isinstance(error, (WorkerDied, WorkerTimeout)):
            raise error
        if isinstance(error, NodeLost):
            self._node_lost = error
        self._group.kill(rank)  # so that what it still does never comes
        self._failures[task.key] += 1
        if (times := self._failures[task.key]) > self._retries:
            raise self._hopeless(task, error, times)
        self._todo.appendleft(task.key)
        self._check()
        self.restarts += 1
        self._lost(Loss(error.role, rank, error.node, f"{error.cause} ({task.phase})", self.restarts, again=True))
        self.add(rank)

    def _not_up(self, rank: int, error: WorkerError) -> None:
        """A worker did not start. Where its node went meanwhile, or had gone before that was known, it is started on
        another."""
        self._group.kill(rank)
        self._lost_starts[rank] += 1
        again = isinstance(error, NodeLost) and self._lost_starts[rank] <= _LOST_STARTS
        if again:
            self._check()
            self.restarts += 1
        else:
            self._not_started = error
        self._lost(Loss(error.role, rank, error.node, error.cause, self.restarts, again))
        if again:
            self.add(rank)

    def _hopeless(self, task: _Task, error: WorkerError, times: int) -> WorkerError:
        """The error that ends the run, of the kind and with the place of the last loss."""
        tried = f"{task.key} was given to {times} worker{'s' if times > 1 else ''} and lost each time"
        cause = f"{error.cause}; {tried} (cluster.retries={self._retries})"
        return type(error)(
            task.phase, error.role, error.rank, error.node, cause, error.weight_version, error.detail
        )  # fmt: skip
