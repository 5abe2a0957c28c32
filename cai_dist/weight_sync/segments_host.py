"""Host memory that processes of one host share, without a name.

It is a file in /dev/shm that never has a name: others reach it through the maker's open descriptor (/proc/PID/fd), and
it is gone with the last process that maps it, however that ends.
"""

from __future__ import annotations

import errno
import mmap
import os
import weakref
from typing import Any

import numpy as np
from torch import Tensor

from cai_dist.errors import ConfigError, WeightTransferError

FOLDER = "/dev/shm"


class HostMemory:
    """A `SegmentMemory` of the host; `place` is the path by which others reach it."""

    def __init__(self, memory: np.ndarray[Any, np.dtype[np.uint8]], place: str) -> None:
        self._bytes, self.place = memory, place

    @classmethod
    def make(cls, size: int) -> HostMemory:
        """`size` bytes, their memory taken. Raises ConfigError where there is no room."""
        file = _new_file(size)
        memory = mmap.mmap(file, size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        made = cls(np.frombuffer(memory, np.uint8), f"/proc/{os.getpid()}/fd/{file}")
        weakref.finalize(made, os.close, file)
        return made

    @classmethod
    def reach(cls, place: str, size: int) -> HostMemory:
        """Memory of another process, to be read only. Raises WeightTransferError."""
        try:
            file = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise WeightTransferError(
                f"the segment {place} cannot be reached from here ({error.strerror}): policy and rollout must run on "
                "one host, in one container, as one user; else set ppo.transfer=object_store"
            ) from error
        try:
            found = os.fstat(file).st_size
            if found != size:
                raise WeightTransferError(f"the segment {place} has {found} bytes and is announced with {size}")
            memory = mmap.mmap(file, found, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
        finally:
            os.close(file)
        return cls(np.frombuffer(memory, np.uint8), place)

    def write(self, start: int, data: Tensor) -> None:
        """Copy bytes in, see the protocol."""
        np.copyto(self._bytes[start : start + data.numel()], data.cpu().numpy())

    def read(self, size: int) -> bytes:
        """Bytes from the start, see the protocol."""
        return self._bytes[:size].tobytes()

    def view(self, start: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Bytes that share the memory, see the protocol."""
        return self._bytes[start : start + size]

    def settle(self) -> None:
        """Host copies are done when they return."""


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
            f"shared memory for weights: no segment of {size / 2**20:.0f} MiB in {FOLDER} ({error.strerror}); make it "
            "larger (--shm-size of a container), or set ppo.transfer=object_store"
        ) from error
    return file
