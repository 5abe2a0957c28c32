"""A question to every node of a cluster, each with a deadline: a node that does not answer is an answer, too."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cai_dist.errors import ConfigError

_JOIN_SECONDS = 60.0


@dataclass(frozen=True)
class NodeInfo:
    """`name` is unique among the nodes; `gpus`: what Ray counts there."""

    name: str
    address: str
    gpus: float


@dataclass(frozen=True)
class Silence:
    """What came instead of an answer."""

    cause: str


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """A connection to the cluster at `auto` or host:port, for as long as the context lasts.

    Raises ConfigError where no cluster answers (a port that is closed: at once; any other within a minute).
    """
    where = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
    host, _, port = where.rpartition(":")
    try:
        if host and port.isdigit():
            socket.create_connection((host, int(port)), timeout=5).close()
        _rehearse(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        line = " ".join(str(error).split())[-300:]
        raise ConfigError(f"{where}: cannot be joined: {line}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _rehearse(address: str) -> None:
    """Join in a process that can be given up: against a port that is not Ray's, `ray.init` tries for many minutes, and
    after others it ends its process. Raises RuntimeError."""
    join = "import logging, sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", join, address],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_JOIN_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"something listens there, but no Ray head within {_JOIN_SECONDS:.0f} s") from None
    if "InvalidAuthToken" in done.stderr:
        raise RuntimeError("it refuses our token, or that we have none")
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no reason given"])[-1])


class Survey:
    """Context manager: a process of its own on every node of the cluster that this process is connected to, made of
    `examiner`, a class without arguments that the nodes can import. The processes end with it."""

    def __init__(self, examiner: type) -> None:
        alive = [node for node in ray.nodes() if node["Alive"]]
        self.lost = len(ray.nodes()) - len(alive)
        """Nodes that have left the cluster since it was started."""
        self.nodes = tuple(
            NodeInfo(name, node["NodeManagerAddress"], node["Resources"].get("GPU", 0.0))
            for name, node in zip(_names(alive), alive, strict=True)
        )
        kind: Any = ray.remote(examiner)
        self._actors: dict[str, Any] = {
            info.name: kind.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote()
            for info, node in zip(self.nodes, alive, strict=True)
        }

    def __enter__(self) -> Survey:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in self._actors.values():
            ray.kill(actor, no_restart=True)

    def ask(self, method: str, arguments: Mapping[str, tuple[Any, ...]], seconds: float) -> dict[str, Any]:
        """Call `method` on the nodes that `arguments` names, all at the same time; node -> what it returned, or
        Silence where that took more than `seconds` or failed."""
        calls = {node: getattr(self._actors[node], method).remote(*given) for node, given in arguments.items()}
        deadline = time.monotonic() + seconds
        return {node: _answer(call, max(deadline - time.monotonic(), 0.0)) for node, call in calls.items()}


def _answer(call: Any, seconds: float) -> Any:
    ready, _ = ray.wait([call], timeout=seconds)
    if not ready:
        ray.cancel(call)
        return Silence("no answer in time")
    try:
        return ray.get(call)
    except Exception as error:  # the examiner's own error, by its own type, or the end of its process
        if isinstance(error, ActorDiedError | ActorUnavailableError):
            return Silence("the node, or Ray's process there, died while it was asked")
        cause = error.cause if isinstance(error, RayTaskError) else error
        return Silence(f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}")


def _names(nodes: list[dict[str, Any]]) -> list[str]:
    """Addresses; where several nodes have one (or all are on this machine), with the start of Ray's id."""
    addresses = [node["NodeManagerAddress"] for node in nodes]
    return [
        address if addresses.count(address) == 1 else f"{address} ({node['NodeID'][:6]})"
        for address, node in zip(addresses, nodes, strict=True)
    ]
