"""Weights through memory that policy ranks and engines of one host share: one segment for each rank that sends.

A segment is made once and used by every later transfer of the same layout, so that its pages are in place. It is a file
in /dev/shm that never has a name: engines reach it through the sender's open descriptor (/proc/PID/fd), and it is gone
with the last process that maps it, however that ends.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import secrets
import struct
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cai_dist.engines.parameters import slices
from cai_dist.engines.train import WeightSource
from cai_dist.errors import ConfigError, WeightTransferError
from cai_dist.models.tensors import flat_bytes, item_size
from cai_dist.types import TensorPiece, TensorSpec, WeightPart, WeightPlan

FOLDER = "/dev/shm"
_ALIGN = 64
_HEADER = struct.Struct("<8s32sq")  # magic, layout, version of the weights
_MAGIC = b"caiwght1"
_UNFINISHED = -1

Buckets = tuple[tuple[TensorSpec, ...], ...]


@dataclass(frozen=True)
class SegmentTicket:
    """Where the segment of one sender is, and what makes it this one."""

    path: str
    size: int
    layout: bytes


class SegmentLayout:
    """What `rank` of `ranks` sends of `buckets`: its pieces one after the other behind the header, each aligned.

    `spans` has for each bucket (piece, first byte, bytes); `size` is that of the segment in bytes.
    """

    def __init__(self, buckets: Buckets, rank: int, ranks: int) -> None:
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
    """The segment of one rank that sends. Raises ConfigError where the host has no room for it."""

    def __init__(self, buckets: Buckets, rank: int, ranks: int) -> None:
        self._buckets, self._layout = buckets, SegmentLayout(buckets, rank, ranks)
        file = _new_file(self._layout.size)
        weakref.finalize(self, os.close, file)
        memory = mmap.mmap(file, self._layout.size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self._bytes = np.frombuffer(memory, np.uint8)
        layout = self._layout.digest(secrets.token_bytes(32))
        self.ticket = SegmentTicket(f"/proc/{os.getpid()}/fd/{file}", self._layout.size, layout)
        self._mark(_UNFINISHED)

    def fill(self, source: WeightSource, plan: WeightPlan, version: int) -> None:
        """Copy this rank's elements in, straight from where they lie; only then the segment says that it holds
        `version`. Raises WeightTransferError for a plan that it was not laid out for."""
        _refuse_other_plan(plan, self._buckets)
        self._mark(_UNFINISHED)
        for bucket, spans in zip(plan.buckets, self._layout.spans, strict=True):
            pieces = source.pieces(bucket, plan.terms is None)
            for (piece, tensor), (expected, start, size) in zip(pieces, spans, strict=True):
                if piece != expected:
                    raise WeightTransferError(f"{piece.name} is not what the segment has room for")
                np.copyto(self._bytes[start : start + size], flat_bytes(tensor).cpu().numpy())
        self._mark(version)

    def _mark(self, version: int) -> None:
        header = _HEADER.pack(_MAGIC, self.ticket.layout, version)
        self._bytes[: _HEADER.size] = np.frombuffer(header, np.uint8)


class SegmentTaker:
    """One engine's view, read-only, of the segments of all senders, in the order of their ranks.

    Raises WeightTransferError for a segment that this process cannot reach or that is not the one of its ticket.
    """

    def __init__(self, plan: WeightPlan, tickets: Sequence[SegmentTicket]) -> None:
        self._buckets = plan.buckets
        self._tickets = tuple(tickets)
        layouts = [SegmentLayout(plan.buckets, rank, len(tickets)) for rank in range(len(tickets))]
        self._memory = [_mapped(*pair) for pair in zip(tickets, layouts, strict=True)]
        self._parts = [
            [_part(memory, layout.spans[index]) for memory, layout in zip(self._memory, layouts, strict=True)]
            for index in range(len(plan.buckets))
        ]

    def buckets(self, plan: WeightPlan, version: int) -> Iterator[list[WeightPart]]:
        """The parts of every bucket, which share the segments' memory. Every segment must hold `version`, whole, before
        the first and still after the last. Raises WeightTransferError."""
        _refuse_other_plan(plan, self._buckets)
        self._check(version)
        yield from self._parts
        self._check(version)

    def _check(self, version: int) -> None:
        for rank, (memory, ticket) in enumerate(zip(self._memory, self._tickets, strict=True)):
            magic, layout, found = _HEADER.unpack(memory[: _HEADER.size].tobytes())
            if (magic, layout) != (_MAGIC, ticket.layout):
                raise WeightTransferError(f"weight version {version}: the segment of rank {rank} has another layout")
            if found != version:
                what = "is not filled" if found == _UNFINISHED else f"holds version {found}"
                raise WeightTransferError(f"weight version {version}: the segment of rank {rank} {what}")


def _new_file(size: int) -> int:
    """The descriptor of a nameless file of `size` bytes, its memory taken."""
    try:
        space = os.statvfs(FOLDER)
        free = space.f_bavail * space.f_frsize
        if free < size:
            raise OSError(errno.ENOSPC, f"{free / 2**20:.0f} MiB are free")
        file = os.open(FOLDER, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, size)  # otherwise a full file system would be a SIGBUS in the middle of a copy
        except OSError:
            os.close(file)
            raise
    except OSError as error:
        raise ConfigError(
            f"ppo.transfer=shared_memory: no segment of {size / 2**20:.0f} MiB in {FOLDER} ({error.strerror}); make it "
            "larger (--shm-size of a container) or set ppo.transfer=object_store"
        ) from error
    return file


def _mapped(ticket: SegmentTicket, layout: SegmentLayout) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        file = os.open(ticket.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise WeightTransferError(
            f"the segment {ticket.path} cannot be reached from here ({error.strerror}): policy and rollout must run on "
            "one host, in one container, as one user; else set ppo.transfer=object_store"
        ) from error
    try:
        found = os.fstat(file).st_size
        if not found == ticket.size == layout.size:
            raise WeightTransferError(
                f"the segment {ticket.path} has {found} bytes, is announced with {ticket.size} and needs {layout.size}"
            )
        memory = mmap.mmap(file, found, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
    finally:
        os.close(file)
    return np.frombuffer(memory, np.uint8)


def _part(memory: np.ndarray, spans: Sequence[tuple[TensorPiece, int, int]]) -> WeightPart:
    pieces = tuple(piece for piece, _, _ in spans)
    return WeightPart(pieces, tuple(memory[start : start + size] for _, start, size in spans))


def _refuse_other_plan(plan: WeightPlan, buckets: Buckets) -> None:
    if plan.buckets != buckets:
        raise WeightTransferError("the plan is another than the one that the segments were laid out for")
