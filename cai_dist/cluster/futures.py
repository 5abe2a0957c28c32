"""The one place that waits for Ray: with a deadline, and with errors that name phase, role, rank and node.

Who waits for whom: the driver waits here for calls of actors; actors wait for each other only inside collectives of
torch.distributed (bounded by `timeouts.collective`). When a rank dies, the others of its group often notice first and
fail with a lost connection; such an error is held back a moment to see whether a peer's death explains it, or the loss
of a node (`cai_dist.cluster.node_watch`), which is looked for during every wait, too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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

from cai_dist.cluster import node_watch
from cai_dist.errors import CaiError, NodeLost, UserError, WorkerDied, WorkerError, WorkerTimeout

R = TypeVar("R")
S = TypeVar("S")
UNKNOWN = "a node not known yet"
_BLAME_SECONDS = 5.0
_TOGETHER = 0.1
"""Seconds that answers are waited for together, before those that are there are looked at: a hundred ranks that end at
about the same time wake the driver once."""
_MOMENT = 0.02
"""Seconds between two calls of `meanwhile`."""
_SLICE = 2.0
"""Seconds between two looks at the nodes during a wait."""
_LOST_PEER = (
    *("closed by peer", "connection reset", "broken pipe", "gloo", "nccl", "timed out waiting"),
    *("actordied", "actorunavailable", "objectlost", "ownerdied"),
)
_HEADER = "\t"
_WORDY = re.compile("Some common causes|Object store memory usage")


@dataclass(frozen=True)
class Call:
    """A method of one actor under way; `roster`: the workers that it was launched with."""

    ref: Any
    phase: str
    role: str
    rank: int
    node: str
    roster: node_watch.WorkerRegistry | None = None

    def alone(self) -> Call:
        """This call as one that depends on no other worker than its own."""
        post = self.roster.posts.get((self.role, self.rank)) if self.roster else None
        return replace(self, roster=node_watch.WorkerRegistry({(self.role, self.rank): post}) if post else None)

    @property
    def weight_version(self) -> int:
        """Version of the worker's weights; -1 where it holds none that arrived by transfer."""
        return self.roster.versions.get(self.role, -1) if self.roster else -1


class PendingCalls(Generic[R]):
    """Calls under way on a group; `result` waits at most `timeout` seconds from when it is asked."""

    def __init__(self, calls: Sequence[Call], timeout: float, combine: Callable[[list[Any]], R]) -> None:
        self._calls, self._timeout, self._combine = tuple(calls), timeout, combine

    def then(self, change: Callable[[R], S]) -> PendingCalls[S]:
        """This wait with its result passed through `change`."""
        combine = self._combine
        return PendingCalls(self._calls, self._timeout, lambda results: change(combine(results)))

    def result(self, meanwhile: Callable[[], None] | None = None) -> R:
        """The combined results. Raises WorkerError, WorkerTimeout, or the UserError that a worker raised.

        `meanwhile` is called again and again during the wait; it must not wait itself.
        """
        return self._combine(gather(self._calls, self._timeout, meanwhile))

    def each(self) -> Each:
        """Answers as they come; `timeout` bounds the wait for all of them."""
        return Each(self._calls, self._timeout)


class Each:
    """(number of the call, what it returned), as calls finish: an iterator, followed to its end."""

    def __init__(self, calls: Sequence[Call], timeout: float) -> None:
        self._waiting = {call.ref: (number, call) for number, call in enumerate(calls)}
        self._timeout = timeout

    def now(self) -> list[tuple[int, Any]]:
        """Parts that have come since the last look, without waiting. Raises as :meth:`Pending.result`."""
        return self._taken(ended(self._pending())) if self._waiting else []

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        deadline = time.monotonic() + self._timeout
        while self._waiting:
            yield from self._taken(all_done(self._pending(), deadline - time.monotonic()))

    def _pending(self) -> list[Call]:
        return [call for _, call in self._waiting.values()]

    def _taken(self, done: list[tuple[Call, Any]]) -> list[tuple[int, Any]]:
        return [(self._waiting.pop(call.ref)[0], value) for call, value in done]


class PendingCallParts(Generic[R]):
    """Calls under way, each of which makes a part of one long list, which is in the order of the calls.

    `starts`: the place of each part in the whole. `read`: (number of the call, its answer) -> part.
    """

    def __init__(
        self, calls: PendingCalls[list[Any]], starts: Sequence[int], read: Callable[[int, Any], list[R]]
    ) -> None:
        self._calls, self._starts, self._read = calls, tuple(starts), read
        self._each = calls.each()

    def parts(self) -> Iterator[tuple[int, list[R]]]:
        """(place, part) in the order in which the calls finish, without those that `ready` has given. Raises as
        :meth:`Pending.result` does."""
        for number, answer in self._each:
            yield self._starts[number], self._read(number, answer)

    def ready(self) -> list[tuple[int, list[R]]]:
        """Parts that are there and were not given before, without waiting. Raises as :meth:`Pending.result` does."""
        return [(self._starts[number], self._read(number, answer)) for number, answer in self._each.now()]

    def result(self) -> list[R]:
        """The whole list. Raises as :meth:`Pending.result` does."""
        return [item for number, answer in enumerate(self._calls.result()) for item in self._read(number, answer)]


def gather(calls: Sequence[Call], timeout: float, meanwhile: Callable[[], None] | None = None) -> list[Any]:
    """All results, in the order of the calls; the first error is raised without waiting for the rest. `meanwhile`: as
    for :meth:`Pending.result`."""
    deadline = time.monotonic() + timeout
    results: dict[Any, Any] = {}
    pending = list(calls)
    while pending:
        if meanwhile is not None:
            first_ready(pending, deadline - time.monotonic(), meanwhile=meanwhile)
        results |= {done.ref: value for done, value in all_done(pending, deadline - time.monotonic(), together=True)}
        pending = [call for call in pending if call.ref not in results]
    return [results[call.ref] for call in calls]


def all_done(pending: Sequence[Call], timeout: float, together: bool = False) -> list[tuple[Call, Any]]:
    """Calls of `pending` that have ended, at least one, with their results. One question to Ray for all: asked for one
    after the other, a thousand calls would be half a million looks. `together`: nobody is in a hurry for the first, so
    all get a moment to end. Raises as :meth:`Pending.result` does."""
    if together:
        refs = [call.ref for call in pending]
        ray.wait(refs, num_returns=len(refs), timeout=max(0.0, min(_TOGETHER, timeout)))
    if first_ready(pending, timeout) is None:
        raise _timeout(pending)
    return ended(pending)


def ended(pending: Sequence[Call]) -> list[tuple[Call, Any]]:
    """Calls of `pending` that have ended by now, with their results. Raises as :meth:`Pending.result` does."""
    refs = [call.ref for call in pending]
    ready = set(ray.wait(refs, num_returns=len(refs), timeout=0)[0])
    over = [call for call in pending if call.ref in ready]
    try:
        return list(zip(over, ray.get([call.ref for call in over]), strict=True))
    except RayError:
        pass  # which of them it is, and what the others say, is asked one by one
    found = []
    for done in over:
        try:
            found.append((done, ray.get(done.ref)))
        except RayError as error:
            raise _explained(done, error, [call for call in pending if call is not done]) from None
    return found


def first_ready(
    pending: Sequence[Call], timeout: float, replaceable: bool = False, meanwhile: Callable[[], None] | None = None
) -> Any:
    """The reference of a call that has ended; None at the deadline. Raises NodeLost where a node goes meanwhile that a
    call depends on; where the workers are `replaceable`, only if it is the head. `meanwhile`: as for
    :meth:`Pending.result`."""
    refs = [call.ref for call in pending]
    deadline, look = time.monotonic() + timeout, time.monotonic() + _SLICE
    while True:
        left = max(deadline - time.monotonic(), 0.0)
        watch = node_watch.current()
        pause = _MOMENT if meanwhile else _SLICE if watch else left
        ready, _ = ray.wait(refs, num_returns=1, timeout=min(left, pause))
        if ready or left <= pause:
            return ready[0] if ready else None
        if meanwhile is not None:
            meanwhile()
        if watch is None or time.monotonic() < look:
            continue
        look = time.monotonic() + _SLICE
        if watch.headless or not replaceable:
            lost = watch.loss(pending)
            if lost is not None:
                raise lost


def translated(call: Call, error: RayError) -> CaiError:
    """Ray's error as one of ours, like `translate`; the loss of the worker's node is told from its death, as far as
    that takes a second or two."""
    found, watch = translate(call, error), node_watch.current()
    lost = watch.explain([call.alone()], patience=0) if watch and isinstance(found, WorkerDied) else None
    return lost or found


def _explained(done: Call, error: RayError, others: Sequence[Call]) -> CaiError:
    """What the failed call means, in view of those still under way: the loss of a node before the death of a process,
    and that before a broken collective."""
    found = translate(done, error)
    if not isinstance(found, WorkerError) or isinstance(found, NodeLost) or not _a_consequence(found):
        return found
    watch = node_watch.current()
    lost = watch.explain([done, *others]) if watch else None
    if lost is None and not isinstance(found, WorkerDied):
        found = _blame(found, [call for call in others if call.role == done.role])
        if watch is not None and isinstance(found, WorkerDied):
            lost = watch.explain([done, *others])  # by now its node is gone, too, if it goes
    return lost or found


def translate(call: Call, error: RayError) -> CaiError:
    """What a Ray error means: the worker's own error, or its death."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, UserError | WorkerError):
            return cause
        return WorkerError(call.phase, call.role, call.rank, call.node, _line(cause or error), detail=str(error))
    kind: type[WorkerError] = WorkerError
    cause = _line(error)
    if isinstance(error, ActorDiedError | ActorUnavailableError | WorkerCrashedError | OutOfMemoryError):
        kind, cause = WorkerDied, f"the worker process died{_why(error)}"
        if "its node has died" in str(error):
            kind, cause = NodeLost, "the node is gone"
    elif isinstance(error, NodeDiedError | ObjectLostError | GetTimeoutError):
        kind, cause = WorkerDied, f"its answer was lost, probably with its node: {_line(error)}"
    return kind(call.phase, call.role, call.rank, call.node, cause, call.weight_version, str(error))


def _why(error: RayError) -> str:
    """What Ray knows of the end of a process, after a colon; empty where it is nothing."""
    lines = [line for line in str(error).splitlines()[1:] if not line.startswith(_HEADER)]
    text = _WORDY.split(" ".join(" ".join(lines or str(error).splitlines()[:1]).split()))[0].strip()
    return f": {text[:300]}" if text and text != ActorDiedError.BASE_ERROR_MSG else ""


def _a_consequence(error: WorkerError) -> bool:
    """Whether what has happened elsewhere may be behind it."""
    text = str(error).lower()
    return isinstance(error, WorkerDied) or any(mark in text for mark in _LOST_PEER)


def _blame(error: WorkerError, peers: Sequence[Call]) -> CaiError:
    """The death of a peer where there is one, else `error`, which looks like its consequence."""
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
