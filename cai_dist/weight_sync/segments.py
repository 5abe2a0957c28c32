"""Weights through memory that processes of one host share: segments, filled by those who send, read by the engines.

What a segment is made of is a matter of its memory: host memory that all processes of one host map
(`weight_segments_host`), or memory of a GPU that a neighbour on the same GPU opens (`weight_segments_cuda`). Layout,
mark and version are the same for both: an engine sees whether a segment is the one that it was told of, and whether it
holds the version that it is to take, whole.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cai_dist.errors import WeightTransferError
from cai_dist.models.tensors import flat_bytes, item_size
from cai_dist.types import TensorPiece, TensorSpec, WeightPart, WeightPlan
from cai_dist.weight_sync.protocol import WeightSource
from cai_dist.weight_sync.segments_cuda import CudaMemory, CudaPlace
from cai_dist.weight_sync.segments_host import HostMemory
from cai_dist.weight_sync.sender import slices

_ALIGN = 64
_HEADER = struct.Struct("<8s32sq")  # magic, layout, version of the weights
_MAGIC = b"caiwght1"
_UNFINISHED = -1

TensorBuckets = tuple[tuple[TensorSpec, ...], ...]


class SegmentMemory(Protocol):
    """Flat bytes that another process reads, too."""

    def write(self, start: int, data: Tensor) -> None:
        """Copy flat uint8 `data`, from whatever device, to byte `start` and after."""
        ...

    def read(self, size: int) -> bytes:
        """A copy of the first `size` bytes, after all that this process has begun to write to them or read."""
        ...

    def view(self, start: int, size: int) -> np.ndarray | Tensor:
        """`size` bytes from `start` on, sharing the memory; to be read only."""
        ...

    def settle(self) -> None:
        """Wait until what this process has begun to write or read is done."""
        ...


@dataclass(frozen=True)
class SegmentTicket:
    """Where the segment of one sender is (a path, or a place on a GPU), and what makes it this one."""

    place: str | CudaPlace
    size: int
    layout: bytes


class SegmentLayout:
    """What `rank` of `ranks` sends of `buckets`: its pieces one after the other behind the header, each aligned.

    `spans` has for each bucket (piece, first byte, bytes); `size` is that of the segment in bytes.
    """

    def __init__(self, buckets: TensorBuckets, rank: int, ranks: int) -> None:
        self.spans: list[list[tuple[TensorPiece, int, int]]] = []
        end = _HEADER.size
        for bucket in buckets:
            items = {spec.name: item_size(spec.dtype) for spec in bucket}
            found = []
            for piece in slices(bucket, rank, ranks):
                start = -(-end // _ALIGN) * _ALIGN
                end = start + piece.count * items[piece.name]
                found.append((piece, start, end - start))
            self.spans.append(found)
        self.size = end

    def digest(self, secret: bytes) -> bytes:
        """32 bytes that another layout, or the same one of another segment, does not have."""
        told = repr([(p.name, p.start, p.count, start, size) for row in self.spans for p, start, size in row])
        return hashlib.blake2b(told.encode(), key=secret, digest_size=32).digest()


class SegmentSender:
    """A segment of host memory for what `rank` of `ranks` sends, or one on this process's GPU (`on_gpu`) for the
    whole weights. Raises ConfigError where there is no room for it, or where it cannot be shared."""

    def __init__(self, buckets: TensorBuckets, rank: int = 0, ranks: int = 1, *, on_gpu: bool = False) -> None:
        self._buckets, self._layout, self._whole = buckets, SegmentLayout(buckets, rank, ranks), ranks == 1
        made = CudaMemory.make(self._layout.size) if on_gpu else HostMemory.make(self._layout.size)
        self._memory: SegmentMemory = made
        self.ticket = SegmentTicket(made.place, self._layout.size, self._layout.digest(secrets.token_bytes(32)))
        self._mark(_UNFINISHED)

    def fill(self, source: WeightSource, plan: WeightPlan, version: int) -> None:
        """Copy this rank's elements in, straight from where they lie; only then the segment says that it holds
        `version`. Raises WeightTransferError for a plan that it was not laid out for."""
        _refuse_other_plan(plan, self._buckets)
        self._mark(_UNFINISHED)
        take = source.whole if self._whole else source.pieces
        for bucket, spans in zip(plan.buckets, self._layout.spans, strict=True):
            for (piece, tensor), (expected, start, _) in zip(take(bucket, plan.terms is None), spans, strict=True):
                if piece != expected:
                    raise WeightTransferError(f"{piece.name} is not what the segment has room for")
                self._memory.write(start, flat_bytes(tensor))
        self._memory.settle()
        self._mark(version)

    def _mark(self, version: int) -> None:
        header = _HEADER.pack(_MAGIC, self.ticket.layout, version)
        self._memory.write(0, torch.from_numpy(np.frombuffer(header, np.uint8).copy()))
        self._memory.settle()


class SegmentTaker:
    """One engine's view of the segments of all senders, in the order of their ranks; of host memory it is read-only.

    Raises WeightTransferError for a segment that this process cannot reach or that is not the one of its ticket.
    """

    def __init__(self, plan: WeightPlan, tickets: Sequence[SegmentTicket]) -> None:
        self._buckets = plan.buckets
        self._tickets = tuple(tickets)
        layouts = [SegmentLayout(plan.buckets, rank, len(tickets)) for rank in range(len(tickets))]
        self._memory = [_reached(*pair) for pair in zip(tickets, layouts, strict=True)]
        self._parts = [
            [_part(memory, layout.spans[index]) for memory, layout in zip(self._memory, layouts, strict=True)]
            for index in range(len(plan.buckets))
        ]

    def buckets(self, plan: WeightPlan, version: int) -> Iterator[list[WeightPart]]:
        """The parts of every bucket, which share the segments' memory. Every segment must hold `version`, whole, before
        the first and still after the last; after that nothing reads it any more. Raises WeightTransferError."""
        _refuse_other_plan(plan, self._buckets)
        self._check(version)
        yield from self._parts
        for memory in self._memory:
            memory.settle()
        self._check(version)

    def _check(self, version: int) -> None:
        for rank, (memory, ticket) in enumerate(zip(self._memory, self._tickets, strict=True)):
            magic, layout, found = _HEADER.unpack(memory.read(_HEADER.size))
            if (magic, layout) != (_MAGIC, ticket.layout):
                raise WeightTransferError(f"weight version {version}: the segment of rank {rank} has another layout")
            if found != version:
                what = "is not filled" if found == _UNFINISHED else f"holds version {found}"
                raise WeightTransferError(f"weight version {version}: the segment of rank {rank} {what}")


def _reached(ticket: SegmentTicket, layout: SegmentLayout) -> SegmentMemory:
    if ticket.size != layout.size:
        raise WeightTransferError(f"a segment is announced with {ticket.size} bytes and needs {layout.size}")
    if isinstance(ticket.place, str):
        return HostMemory.reach(ticket.place, ticket.size)
    return CudaMemory.reach(ticket.place, ticket.size)


def _part(memory: SegmentMemory, spans: Sequence[tuple[TensorPiece, int, int]]) -> WeightPart:
    pieces = tuple(piece for piece, _, _ in spans)
    return WeightPart(pieces, tuple(memory.view(start, size) for _, start, size in spans))


def _refuse_other_plan(plan: WeightPlan, buckets: TensorBuckets) -> None:
    if plan.buckets != buckets:
        raise WeightTransferError("the plan is another than the one that the segments were laid out for")
