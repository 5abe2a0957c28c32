"""The one place that waits for Ray: with a deadline, and with errors that name phase, role, rank and node.

Who waits for whom: the driver waits here for calls of actors; actors wait for each other only inside collectives of
torch.distributed (bounded by `timeouts.collective`). When a rank dies, the others of its group often notice first and
fail with a lost connection; such an error is held back a moment to see whether a peer's death explains it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from cai_dist.errors import CaiError, UserError, WorkerDied, WorkerError, WorkerTimeout

R = TypeVar("R")
S = TypeVar("S")
_BLAME_SECONDS = 5.0
_LOST_PEER = ("closed by peer", "connection reset", "broken pipe", "gloo", "nccl", "timed out waiting")


@dataclass(frozen=True)
class Call:
    """A method of one actor under way."""

    ref: Any
    phase: str
    role: str
    rank: int
    node: str


class Pending(Generic[R]):
    """Calls under way on a group; `result` waits at most `timeout` seconds from when it is asked."""

    def __init__(self, calls: Sequence[Call], timeout: float, combine: Callable[[list[Any]], R]) -> None:
        self._calls, self._timeout, self._combine = tuple(calls), timeout, combine

    def then(self, change: Callable[[R], S]) -> Pending[S]:
        """The same wait with its result passed through `change`."""
        combine = self._combine
        return Pending(self._calls, self._timeout, lambda results: change(combine(results)))

    def result(self) -> R:
        """The combined results. Raises WorkerError, WorkerTimeout, or the UserError that a worker raised."""
        return self._combine(gather(self._calls, self._timeout))

    def each(self) -> Iterator[tuple[int, Any]]:
        """(number of the call, what it returned), as they finish; `timeout` bounds the wait for all of them."""
        deadline = time.monotonic() + self._timeout
        waiting = {call.ref: number for number, call in enumerate(self._calls)}
        pending = list(self._calls)
        while pending:
            done, value = next_done(pending, deadline - time.monotonic())
            pending.remove(done)
            yield waiting[done.ref], value


class PendingParts(Generic[R]):
    """Calls under way, each of which returns a list: a part of one long list, which is in the order of the calls.

    `starts`: the place of each part in the whole.
    """

    def __init__(self, calls: Pending[list[list[R]]], starts: Sequence[int]) -> None:
        self._calls, self._starts = calls, tuple(starts)

    def parts(self) -> Iterator[tuple[int, list[R]]]:
        """(place, part) in the order in which the calls finish. Raises as :meth:`Pending.result` does."""
        for number, part in self._calls.each():
            yield self._starts[number], part

    def result(self) -> list[R]:
        """The whole list. Raises as :meth:`Pending.result` does."""
        return [item for part in self._calls.result() for item in part]


def gather(calls: Sequence[Call], timeout: float) -> list[Any]:
    """All results, in the order of the calls; the first error is raised without waiting for the rest."""
    deadline = time.monotonic() + timeout
    results: dict[Any, Any] = {}
    pending = list(calls)
    while pending:
        done, value = next_done(pending, deadline - time.monotonic())
        results[done.ref] = value
        pending.remove(done)
    return [results[call.ref] for call in calls]


def next_done(pending: Sequence[Call], timeout: float) -> tuple[Call, Any]:
    """The first of `pending` to finish, with its result. Raises as :meth:`Pending.result` does."""
    ready, _ = ray.wait([call.ref for call in pending], num_returns=1, timeout=max(timeout, 0.0))
    if not ready:
        raise _timeout(pending)
    done = next(call for call in pending if call.ref == ready[0])
    try:
        return done, ray.get(done.ref)
    except RayError as error:
        peers = [call for call in pending if call is not done and call.role == done.role]
        raise _blame(translate(done, error), peers) from None


def translate(call: Call, error: RayError) -> CaiError:
    """What a Ray error means: the worker's own error, or its death."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, UserError | WorkerError):
            return cause
        return WorkerError(call.phase, call.role, call.rank, call.node, _line(cause or error), detail=str(error))
    if isinstance(error, ActorDiedError | ActorUnavailableError | WorkerCrashedError | OutOfMemoryError):
        return WorkerDied(call.phase, call.role, call.rank, call.node, "the worker process died", detail=str(error))
    if isinstance(error, NodeDiedError | ObjectLostError | GetTimeoutError):
        cause = f"its answer was lost, probably with its node: {_line(error)}"
        return WorkerDied(call.phase, call.role, call.rank, call.node, cause, detail=str(error))
    return WorkerError(call.phase, call.role, call.rank, call.node, _line(error), detail=str(error))


def _blame(error: CaiError, peers: Sequence[Call]) -> CaiError:
    """The death of a peer where there is one and `error` looks like its consequence; else `error`."""
    text = str(error).lower()
    if not isinstance(error, WorkerError) or not any(mark in text for mark in _LOST_PEER):
        return error
    waiting = list(peers)
    deadline = time.monotonic() + _BLAME_SECONDS
    while waiting and (left := deadline - time.monotonic()) > 0:
        ready, _ = ray.wait([call.ref for call in waiting], num_returns=1, timeout=left)
        for call in [call for call in waiting if call.ref in ready]:
            waiting.remove(call)
            try:
                ray.get(call.ref)
            except (ActorDiedError, ActorUnavailableError) as death:
                return translate(call, death)
            except RayError:
                continue
    return error


def _timeout(pending: Sequence[Call]) -> WorkerTimeout:
    first = pending[0]
    ranks = ", ".join(str(call.rank) for call in pending)
    rank = first.rank if len(pending) == 1 else -1
    return WorkerTimeout(first.phase, first.role, rank, first.node, f"no answer in time from rank {ranks}")


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: " + " ".join(str(error).split())[:500]
