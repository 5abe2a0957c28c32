"""Memory of a GPU that two processes on the same GPU share, by CUDA IPC.

The maker's tensor stays its own; the neighbour opens the allocation that it lies in (torch's own handles, as its
multiprocessing sends them) and copies on the device. The memory is free again once the neighbour has let go, the maker
has too, and `collect` was called.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from cai_dist.errors import ConfigError, WeightTransferError

_INSTEAD = "set ppo.transfer=object_store"
_UNSHARED = {
    r"expandable_segments\s*:\s*true": "segments that grow in place",
    r"backend\s*:\s*cudamallocasync": "the driver's pool",
}
"""Settings of torch's allocator with which its memory cannot be opened elsewhere (or by some drivers alone)."""


@dataclass(frozen=True)
class CudaPlace:
    """Where the memory is: the device, by the name that all processes have for it, and torch's handle."""

    device: str
    opened: Callable[..., Tensor]
    handle: tuple[Any, ...]


class CudaMemory:
    """A `SegmentMemory` on a GPU; `place` is how a neighbour reaches it."""

    def __init__(self, memory: Tensor, place: CudaPlace) -> None:
        self._bytes, self.place = memory, place

    @classmethod
    def make(cls, size: int) -> CudaMemory:
        """`size` bytes of this process's GPU. Raises ConfigError where they cannot be shared."""
        if not torch.cuda.is_available():
            raise ConfigError(f"ppo.transfer=cuda_ipc: this worker has no GPU; {_INSTEAD}")
        if why := unshared_allocator(os.environ):
            raise ConfigError(f"ppo.transfer=cuda_ipc: {why}")
        memory = torch.empty(size, dtype=torch.uint8, device="cuda")
        try:
            return cls(memory, CudaPlace(_device_name(), *reduce_tensor(memory)))
        except RuntimeError as error:
            raise ConfigError(
                f"ppo.transfer=cuda_ipc: processes cannot share GPU memory here ({_line(error)}); {_INSTEAD}"
            ) from error

    @classmethod
    def reach(cls, place: CudaPlace, size: int) -> CudaMemory:
        """Memory of a neighbour, to be read only. Raises WeightTransferError."""
        if not torch.cuda.is_available() or place.device != _device_name():
            here = f"this one on {_device_name()}" if torch.cuda.is_available() else "this process has no GPU"
            raise WeightTransferError(f"the segment is on {place.device} and {here}; {_INSTEAD}")
        try:
            memory = place.opened(*place.handle)
        except RuntimeError as error:
            raise WeightTransferError(f"the segment cannot be opened here ({_line(error)}); {_INSTEAD}") from error
        if memory.numel() != size:
            raise WeightTransferError(f"the segment has {memory.numel()} bytes and is announced with {size}")
        return cls(memory, place)

    def write(self, start: int, data: Tensor) -> None:
        """Copy bytes in, see the protocol."""
        self._bytes[start : start + data.numel()].copy_(data)

    def read(self, size: int) -> bytes:
        """Bytes from the start, see the protocol: a copy to the host comes after all that was put on the stream before
        it."""
        return self._bytes[:size].cpu().numpy().tobytes()

    def view(self, start: int, size: int) -> Tensor:
        """Bytes that share the memory, see the protocol."""
        return self._bytes[start : start + size]

    def settle(self) -> None:
        """Wait until all is done, see the protocol."""
        torch.cuda.synchronize()


def collect() -> None:
    """Memory that was shared, and that nobody has any more, goes back to the GPU."""
    torch.cuda.ipc_collect()
    torch.cuda.empty_cache()


def unshared_allocator(environment: Mapping[str, str]) -> str:
    """Why memory of torch's allocator, as `environment` sets it up, cannot be opened by another process; "": it can."""
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        for pattern, what in _UNSHARED.items():
            if re.search(pattern, environment.get(name, ""), re.IGNORECASE):
                given = f"{name}={environment[name]}"
                return f"{given} takes memory from {what}, which cannot be shared; unset it or {_INSTEAD}"
    return ""


def _device_name() -> str:
    return f"GPU {torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
