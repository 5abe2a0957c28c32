"""A question to every node of a cluster, each with a deadline: a node that does not answer is an answer, too."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cai_dist.cluster.joining import join


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

    Raises ConfigError where no cluster answers, as `join`.
    """
    join(address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


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
