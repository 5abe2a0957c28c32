"""The one actor class: a process that hosts a worker and turns what goes wrong into a WorkerError."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
import traceback
from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import ray

from cai_dist.cluster.network_interface import use_interface
from cai_dist.cluster.object_refs import kept, resolve
from cai_dist.errors import NonFiniteError, UserError, WorkerDiverged, WorkerError
from cai_dist.types import RankInfo, WorkerSpec
from cai_dist.workers.registry import worker_class

_NICE = 10
_SPANS = 10_000
"""Calls that are remembered until somebody asks; older ones are forgotten."""


class Arrival(NamedTuple):
    """A worker's process is up: the address of its node and Ray's id of it; where the rendezvous store of its group is,
    if it has opened that (else port 0)."""

    node: str
    node_id: str
    store: str
    port: int


class RefSlot(Enum):
    """Mark in the place of an argument that Ray fetches: only arguments of the call itself are."""

    HERE = 0


class CallArguments(NamedTuple):
    """One argument for all: Ray takes longer over each argument of a call than over what is in it."""

    phase: str
    method: str
    args: tuple[Any, ...]


def asked(phase: str, method: str, args: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments of `WorkerHost.call`."""
    refs = [arg for arg in args if isinstance(arg, ray.ObjectRef)]
    plain = tuple([RefSlot.HERE if isinstance(arg, ray.ObjectRef) else arg for arg in args]) if refs else tuple(args)
    return CallArguments(phase, method, plain), *refs


class WorkerHost:
    """One worker in a process of its own, made by Ray; calls run one after the other, in the order in which they were
    made."""

    def __init__(self, role: str, rank: int) -> None:
        self._role, self._rank = role, rank
        self._node = ray.util.get_node_ip_address()
        self._worker: Any = None
        self._spans: deque[tuple[str, float, float]] = deque(maxlen=_SPANS)

    def prepare(self, target: str, store_timeout: float | None, loopback: bool) -> Arrival:
        """Import the worker's module (seconds: torch) and, on the rank that leads, open the rendezvous store: at the
        address by which Ray knows this node, or (all ranks being on it) on `loopback`. Collectives take the interface
        of that address."""
        try:
            if not loopback:
                use_interface(self._node)
            _load(target)
            host = "127.0.0.1" if loopback else self._node
            node_id = ray.get_runtime_context().get_node_id()
            if store_timeout is None:
                return Arrival(self._node, node_id, host, 0)
            from cai_dist.distributed.process_group import open_store

            return Arrival(self._node, node_id, host, open_store(host, store_timeout))
        except Exception as error:
            raise self._error("start", error) from None

    def where(self) -> tuple[str, tuple[str, ...]]:
        """(address of this node, Ray's ids of the GPUs that this process sees)."""
        return self._node, tuple(str(gpu) for gpu in ray.get_gpu_ids())

    def build(self, spec: WorkerSpec, info: RankInfo) -> None:
        """Construct the worker."""
        self._role, self._rank = info.role, info.rank
        try:
            if spec.yields:
                os.nice(_NICE)  # the threads that compute begin in this one and are as nice
            self._worker = _load(spec.target)(info, **spec.kwargs)
        except Exception as error:
            raise self._error("start", error) from None

    def rest(self) -> None:
        """Give the worker up, with its memory; the process may be given another one."""
        self._worker = None
        self._spans.clear()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)

    def call(self, asked: CallArguments, *fetched: Any) -> Any:
        """`worker.method(*args)`: rows in the arguments are fetched first, rows that the method wants kept are kept.
        `fetched`: what stands in the places of `asked.args` that are `RefSlot`, by Ray."""
        start = time.time()
        phase, method, args = asked
        arrived = iter(fetched)
        args = tuple([next(arrived) if arg is RefSlot.HERE else arg for arg in args])
        try:
            return kept(getattr(self._worker, method)(*resolve(args, phase)))
        except Exception as error:
            raise self._error(phase, error) from None
        finally:
            self._spans.append((phase, start, time.time()))

    def report(self, memory: bool) -> tuple[list[tuple[str, float, float]], dict[str, float]]:
        """(phase, start, end) of every call since this was last asked, in seconds since 1970; and, where it is asked
        for, what the worker's meter says."""
        found = list(self._spans)
        self._spans.clear()
        return found, self._worker.memory() if memory else {}

    def _error(self, phase: str, error: Exception) -> Exception:
        """Mistakes of the user travel as they are, as do errors that name a worker; everything else says where it
        happened."""
        if isinstance(error, UserError | WorkerError):
            return error
        cause = f"{type(error).__name__}: " + " ".join(str(error).split())[:500]
        version = getattr(self._worker, "weight_version", -1)
        detail = "".join(traceback.format_exception(error))
        kind = WorkerDiverged if isinstance(error, NonFiniteError) else WorkerError
        return kind(phase, self._role, self._rank, self._node, cause, version, detail)


def _load(target: str) -> Any:
    """The class that `target` names (`cai_dist.workers.registry.worker_class`).

    Torch and transformers make millions of objects while they are imported and none of them is garbage: without the
    collector the import takes a third less time, and frozen they are not looked at again.
    """
    gc.disable()
    try:
        return worker_class(target)
    finally:
        gc.freeze()
        gc.enable()
