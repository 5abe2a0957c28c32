"""Weights by broadcast: for one policy rank on each node a process group of it and all engines, beside torch's default.

gloo on CPUs, NCCL on GPUs. In each group the sender is rank 0 and engine e is rank e + 1. The senders take turns, a
bucket each; under ZeRO-3 all policy ranks gather it in the group that they train in. So an engine is in as many groups
as there are nodes that train, however many ranks. All engines take the buckets in the same order, so that nobody waits
in a circle; every wait ends at the deadline of the group.
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
from cai_dist.models.tensors import flat_bytes
from cai_dist.types import TensorPiece, TensorSpec, WeightPart, WeightPlan
from cai_dist.weight_sync.protocol import WeightSource
from cai_dist.weight_sync.sender import slices

_IN_FLIGHT = 2


@dataclass(frozen=True)
class Rendezvous:
    """Where the groups of one set of processes meet: the store of policy rank 0, and a name never used before."""

    host: str
    port: int
    name: str
    senders: tuple[int, ...]
    """The policy ranks that send, in turns."""
    engines: int
    timeout: float
    """Seconds that any wait may take."""


class WeightSender:
    """One policy rank's side, whether it is one that sends or not. Raises RuntimeError (a lost connection among them)
    where an engine does not come in time."""

    def __init__(self, meeting: Rendezvous, rank: int, store: Store | None) -> None:
        self._turns, self._turn = len(meeting.senders), -1
        self._group: Any = None
        if rank in meeting.senders:
            self._turn = meeting.senders.index(rank)
            self._group = _join(store or _reach(meeting), meeting, rank, 0)

    def send(self, source: WeightSource, plan: WeightPlan) -> None:
        """Gather every bucket where that is needed (collective), and broadcast those whose turn is this rank's; while
        one is under way the next is packed. A rank whose engines are lost gathers with the others to the end, who would
        wait for it, and raises then."""
        under_way: list[tuple[Any, Tensor]] = []
        lost: Exception | None = None
        for number, bucket in enumerate(plan.buckets):
            tensors = source.whole(bucket, plan.terms is None)
            if lost is not None or number % self._turns != self._turn:
                for _ in tensors:
                    pass
                continue
            flat = _packed(bucket, tensors)
            try:
                under_way.append((self._group.broadcast(flat, 0), flat))
                if len(under_way) == _IN_FLIGHT:
                    under_way.pop(0)[0].wait()
            except Exception as error:
                lost = error
        if lost is not None:
            raise lost
        for work, _ in under_way:
            work.wait()


class WeightTaker:
    """One engine's side. Raises as `WeightSender` does."""

    def __init__(self, meeting: Rendezvous, engine: int) -> None:
        store = _reach(meeting)
        self._groups = [_join(store, meeting, sender, engine + 1) for sender in meeting.senders]

    @property
    def groups(self) -> int:
        """Process groups that this engine is in."""
        return len(self._groups)

    def buckets(self, plan: WeightPlan) -> Iterator[list[WeightPart]]:
        """Every bucket, in order; the next one is on its way while the caller has this one."""
        coming = [self._start(number, bucket) for number, bucket in enumerate(plan.buckets[:1])]
        for index in range(len(plan.buckets)):
            coming += [self._start(index + 1, bucket) for bucket in plan.buckets[index + 1 : index + 2]]
            work, part = coming.pop(0)
            work.wait()
            yield [part]

    def _start(self, number: int, bucket: Sequence[TensorSpec]) -> tuple[Any, WeightPart]:
        data = torch.empty(_size(bucket), dtype=torch.uint8, device=worker_device())
        work = self._groups[number % len(self._groups)].broadcast(data, 0)
        return work, WeightPart(tuple(slices(bucket, 0, 1)), data)


def _packed(bucket: Sequence[TensorSpec], tensors: Iterator[tuple[TensorPiece, Tensor]]) -> Tensor:
    """The tensors one after the other, copied while they are whole."""
    flat, end = torch.empty(_size(bucket), dtype=torch.uint8, device=worker_device()), 0
    for _, tensor in tensors:
        data = flat_bytes(tensor)
        flat[end : end + data.numel()].copy_(data)
        end += data.numel()
    return flat


def _size(bucket: Sequence[TensorSpec]) -> int:
    return sum(spec.nbytes for spec in bucket)


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
