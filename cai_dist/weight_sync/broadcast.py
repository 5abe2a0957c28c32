"""Weights by broadcast: for each rank that sends, a process group of it and all engines, beside torch's default group.

gloo on CPUs, NCCL on GPUs. In each group the sender is rank 0 and engine e is rank e + 1. All engines take the senders
of a bucket in the same order, so that nobody waits in a circle; every wait ends at the deadline of the group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from cai_dist.distributed.process_group import worker_device
from cai_dist.models.tensors import flat_bytes, item_size
from cai_dist.types import TensorSpec, WeightPart, WeightPlan
from cai_dist.weight_sync.protocol import WeightSource
from cai_dist.weight_sync.sender import slices

_IN_FLIGHT = 2


@dataclass(frozen=True)
class Rendezvous:
    """Where the groups of one set of processes meet: the store of the first sender, and a name never used before."""

    host: str
    port: int
    name: str
    senders: int
    engines: int
    timeout: float
    """Seconds that any wait may take."""


class WeightSender:
    """One rank that sends. Raises RuntimeError (a lost connection among them) where an engine does not come in time."""

    def __init__(self, meeting: Rendezvous, rank: int, store: Store | None) -> None:
        self._rank, self._ranks = rank, meeting.senders
        self._group = _join(store or _reach(meeting), meeting, rank, 0)

    def send(self, source: WeightSource, plan: WeightPlan) -> None:
        """Broadcast this rank's part of every bucket; while one is under way the next is packed."""
        under_way: list[tuple[Any, Tensor]] = []
        for bucket in plan.buckets:
            tensors = [flat_bytes(tensor) for _, tensor in source.pieces(bucket, plan.terms is None)]
            if tensors:
                flat = torch.cat(tensors)
                under_way.append((self._group.broadcast(flat, 0), flat))
            if len(under_way) == _IN_FLIGHT:
                under_way.pop(0)[0].wait()
        for work, _ in under_way:
            work.wait()


class WeightTaker:
    """One engine's side. Raises as `WeightSender` does."""

    def __init__(self, meeting: Rendezvous, engine: int) -> None:
        store = _reach(meeting)
        self._ranks = meeting.senders
        self._groups = [_join(store, meeting, sender, engine + 1) for sender in range(meeting.senders)]

    def buckets(self, plan: WeightPlan) -> Iterator[list[WeightPart]]:
        """The parts of every bucket, in order; the next one is on its way while the caller has this one."""
        coming = [self._start(bucket) for bucket in plan.buckets[:1]]
        for index in range(len(plan.buckets)):
            coming += [self._start(bucket) for bucket in plan.buckets[index + 1 : index + 2]]
            parts = []
            for work, part in coming.pop(0):
                work.wait()
                parts.append(part)
            yield parts

    def _start(self, bucket: Sequence[TensorSpec]) -> list[tuple[Any, WeightPart]]:
        sizes = {spec.name: item_size(spec.dtype) for spec in bucket}
        started = []
        for sender, group in enumerate(self._groups):
            pieces = tuple(slices(bucket, sender, self._ranks))
            if pieces:
                count = sum(piece.count * sizes[piece.name] for piece in pieces)
                data = torch.empty(count, dtype=torch.uint8, device=worker_device())
                started.append((group.broadcast(data, 0), WeightPart(pieces, data)))
        return started


def _reach(meeting: Rendezvous) -> TCPStore:
    wait = timedelta(seconds=meeting.timeout)
    return TCPStore(meeting.host, meeting.port, None, is_master=False, timeout=wait)


def _join(store: Store, meeting: Rendezvous, sender: int, rank: int) -> Any:
    """The process group of one sender, connected or not at all."""
    own = PrefixStore(f"{meeting.name}/{sender}", store)
    wait = timedelta(seconds=meeting.timeout)
    if worker_device().type == "cpu":
        return dist.ProcessGroupGloo(own, rank, meeting.engines + 1, wait)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = wait
    return dist.ProcessGroupNCCL(own, rank, meeting.engines + 1, options)
