"""Nodes that are lost: which worker went with one, found out with a deadline.

When a host goes, the driver sees consequences: a call that fails because a process is gone, a survivor whose collective
broke, or nothing at all, because the lost worker had nothing in hand. The one that knows is the GCS, Ray's directory on
the head, and it needs some health checks to be sure. So a thread asks it every few seconds which nodes are alive; the
waits of the driver look at its last answer; and a failure that may be the consequence of a lost node is held back until
either the GCS has spoken or every node in question answers at its raylet's port.

    a call fails -> a node dead (GCS)?  yes -> NodeLost, by the name of its worker
                    a node silent?      yes -> ask again, at most PATIENCE seconds; then NodeLost all the same
                    all answer          ->     the failure is what it looks like
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import ray

from cai_dist.errors import CaiError, NodeLost

R = TypeVar("R")
PATIENCE = 25.0
"""Seconds that a failure is held back for the GCS's word on a node that does not answer."""
HEAD_SECONDS = 20.0
"""Silence of the GCS after which the head counts as lost; Ray itself ends a driver without one after 60."""
CALM_SECONDS = 3.0
"""How long all nodes must answer before a failure is taken for what it is: the processes of a host do not all end at
one stroke, and its workers may do so before its raylet."""
_PERIOD = 2.0
_PROBE_SECONDS = 1.0


@dataclass(frozen=True)
class WorkerAddress:
    """A worker and its node: address and Ray's id."""

    role: str
    rank: int
    node: str
    node_id: str


@dataclass
class WorkerRegistry:
    """The workers that were launched together, none of which can go on without the others, and the version of the
    weights that each role holds."""

    posts: dict[tuple[str, int], WorkerAddress] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    def enter(self, post: WorkerAddress) -> None:
        """A worker is up; it takes the place of an earlier one."""
        self.posts[post.role, post.rank] = post

    def leave(self, role: str) -> None:
        """The workers of `role` are gone on purpose."""
        for key in [key for key in self.posts if key[0] == role]:
            del self.posts[key]


class WatchedCall(Protocol):
    """A call under way, as `cai_dist.cluster.futures.Call`."""

    @property
    def phase(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def roster(self) -> WorkerRegistry | None: ...


class NodeWatch:
    """Asks `nodes` (as `ray.nodes`, which may block while there is no GCS) every `period` seconds, in a thread."""

    def __init__(
        self, head: str, nodes: Callable[[], list[dict[str, Any]]] = ray.nodes, period: float = _PERIOD
    ) -> None:
        self._head, self._nodes, self._period = head, nodes, period
        self._changed = threading.Condition()
        self._table: dict[str, Mapping[str, Any]] = {}
        self._asked = self._answered = time.monotonic()
        self._hurry = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="node watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more questions."""
        self._ended = True
        self._hurry.set()

    @property
    def headless(self) -> bool:
        """Whether the GCS has been silent for too long."""
        return time.monotonic() - self._answered > HEAD_SECONDS

    def loss(self, calls: Sequence[WatchedCall]) -> NodeLost | None:
        """What is known by now: the head is lost, or a node with a worker that one of `calls` depends on."""
        return self.head_lost(calls[0].phase) or self._named(calls, self._dead, "the node is gone")

    def head_lost(self, phase: str) -> NodeLost | None:
        """What is known by now of the head."""
        if self.headless:
            self._refresh(_PROBE_SECONDS)  # it may have been this process that was stopped for a while
        if not self.headless:
            return None
        cause = f"the head of the Ray cluster has not answered for {HEAD_SECONDS:g} s"
        return NodeLost(phase, "head", -1, self._head, cause)

    def head_behind(self, phase: str) -> NodeLost | None:
        """The loss of the head behind something that failed just now; None as soon as it answers."""
        now = time.monotonic()
        while self._asked < now:
            self._refresh(_PROBE_SECONDS)
            if (lost := self.head_lost(phase)) is not None:
                return lost
        return None

    def explain(self, calls: Sequence[WatchedCall], patience: float = PATIENCE) -> NodeLost | None:
        """The loss behind the failure of the first of `calls`; None where the nodes of all workers that `calls` depend
        on answer. Takes at most about `patience` seconds; 0: one look."""
        deadline = time.monotonic() + patience
        calm_since: float | None = None
        while True:
            self._refresh(_PROBE_SECONDS)
            if (found := self.loss(calls)) is not None:
                return found
            silent = self._silent({post.node_id for post in _posts(calls)})
            if not silent:
                calm_since = calm_since or time.monotonic()
                if not patience or time.monotonic() - calm_since >= CALM_SECONDS:
                    return None
            elif time.monotonic() >= deadline:
                return self._named(calls, silent.__contains__, "the node does not answer")
            else:
                calm_since = None
            time.sleep(_PROBE_SECONDS / 4)

    # ---- the thread

    def _run(self) -> None:
        while not self._ended:
            asked = time.monotonic()
            # No answer, or an error in place of one: what counts is how long that lasts.
            with contextlib.suppress(Exception):
                table: dict[str, Mapping[str, Any]] = {node["NodeID"]: node for node in self._nodes()}
                with self._changed:
                    self._table, self._asked, self._answered = table, asked, time.monotonic()
                    self._changed.notify_all()
            self._hurry.wait(self._period)
            self._hurry.clear()

    def _refresh(self, seconds: float) -> None:
        """Wait for the answer to a question that is asked from now on, or not longer than `seconds`."""
        now = time.monotonic()
        self._hurry.set()
        with self._changed:
            self._changed.wait_for(lambda: self._asked >= now, seconds)

    # ---- who is where

    def _dead(self, node_id: str) -> bool:
        node = self._table.get(node_id)
        return node is not None and not node["Alive"]

    def _named(self, calls: Sequence[WatchedCall], lost: Callable[[str], bool], cause: str) -> NodeLost | None:
        """By the name of a worker whose node (its id) is `lost`: of one of `calls` where there is such a worker."""
        for call in calls:
            post = call.roster.posts.get((call.role, call.rank)) if call.roster else None
            if post is not None and lost(post.node_id):
                return _error(call, post, cause)
        for call in calls:
            for post in call.roster.posts.values() if call.roster else ():
                if lost(post.node_id):
                    return _error(call, post, cause)
        return None

    def _silent(self, node_ids: Collection[str]) -> set[str]:
        """Those whose raylet takes no connection."""
        ports = {
            node_id: (node["NodeManagerAddress"], node["NodeManagerPort"])
            for node_id in node_ids
            if (node := self._table.get(node_id)) is not None
        }
        return set(ports) - {node_id for node_id, _ in _reached(ports.items())}


def _posts(calls: Sequence[WatchedCall]) -> Iterator[WorkerAddress]:
    for roster in {id(call.roster): call.roster for call in calls if call.roster is not None}.values():
        yield from roster.posts.values()


def _error(call: WatchedCall, post: WorkerAddress, cause: str) -> NodeLost:
    version = call.roster.versions.get(post.role, -1) if call.roster else -1
    return NodeLost(call.phase, post.role, post.rank, post.node, cause, version)


def _reached(ports: Iterable[tuple[str, tuple[str, int]]]) -> Iterator[tuple[str, tuple[str, int]]]:
    """Those that take a TCP connection within `_PROBE_SECONDS`; all are tried at the same time."""
    deadline = time.monotonic() + _PROBE_SECONDS
    with contextlib.ExitStack() as opened, selectors.DefaultSelector() as selector:
        for name, port in ports:
            family = socket.AF_INET6 if ":" in port[0] else socket.AF_INET
            probe = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
            probe.setblocking(False)
            probe.connect_ex(port)
            selector.register(probe, selectors.EVENT_WRITE, (name, port))
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                selector.unregister(key.fileobj)
                if not key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # type: ignore[union-attr]
                    yield key.data


_current: NodeWatch | None = None


def current() -> NodeWatch | None:
    """The watch over the cluster that this process has joined; None on a cluster of one node that ends with the run."""
    return _current


def start(head: str) -> NodeWatch:
    """Watch over the cluster that this process has joined, until `stop`."""
    global _current
    _current = NodeWatch(head)
    return _current


def ask_head(phase: str, question: Callable[[], R]) -> R:
    """`question()`, which Ray takes to the head: without one it blocks for a minute, and then raises what says nothing
    of a head. Raises NodeLost as soon as that is lost; the question is then left to itself."""
    if _current is None:
        return question()
    asked = Future[R]()

    def ask() -> None:
        try:
            asked.set_result(question())
        except BaseException as error:
            asked.set_exception(error)

    threading.Thread(target=ask, name=f"{phase}: a question to the head", daemon=True).start()
    while not asked.done():
        with contextlib.suppress(TimeoutError):
            asked.exception(_PROBE_SECONDS)
        if (lost := _current.head_lost(phase)) is not None:
            raise lost from None
    error = asked.exception()
    if error is not None and not isinstance(error, CaiError) and (lost := _current.head_behind(phase)) is not None:
        raise lost from None
    return asked.result()


def stop() -> None:
    """No cluster is joined any more."""
    global _current
    if _current is not None:
        _current.stop()
    _current = None
