"""Tensors of a weight transfer, handed from the process that has them to the processes of one vLLM engine.

An engine in this process takes them as they are. One that is cut over several processes of this host reads them out of
shared memory: every process maps the same bytes and copies its own part, so that nothing is pickled and no process
holds more than its share beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cai_dist.errors import ConfigError, WeightTransferError
from cai_dist.models.tensors import read_only_tensor
from cai_dist.weight_sync.segments_host import HostMemory

_ALIGN = 64


@dataclass(frozen=True)
class TensorPlace:
    """Where one tensor stands in shared memory: its bytes begin at `start`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class SharedTensors:
    """Some whole tensors in memory of this host; the one who made it keeps it until all have read."""

    place: str
    size: int
    tensors: tuple[TensorPlace, ...]

    def read(self) -> dict[str, Tensor]:
        """Name -> tensor, sharing the memory, which stays as long as one of them does; to be read only. Raises
        WeightTransferError."""
        memory = HostMemory.reach(self.place, self.size)
        found = {}
        for one in self.tensors:
            dtype = getattr(torch, one.dtype)
            count = int(np.prod(one.shape, dtype=np.int64))
            flat = read_only_tensor(memory.view(one.start, count * dtype.itemsize), torch.uint8)
            found[one.name] = flat.view(dtype).view(one.shape)
        return found


def share(tensors: Mapping[str, Tensor]) -> tuple[SharedTensors, Any]:
    """The tensors in new shared memory, and what keeps that memory: to be let go of when all have read. Raises
    WeightTransferError where there is no room."""
    places, end = [], 0
    for name, tensor in tensors.items():
        start = -(-end // _ALIGN) * _ALIGN
        places.append(TensorPlace(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), start))
        end = start + tensor.nbytes
    try:
        memory = HostMemory.make(max(end, 1))
    except ConfigError as error:
        raise WeightTransferError(f"a bucket for vLLM's processes: {error}") from error
    for place, tensor in zip(places, tensors.values(), strict=True):
        memory.write(place.start, tensor.detach().contiguous().view(-1).view(torch.uint8))
    return SharedTensors(memory.place, max(end, 1), tuple(places)), memory
