"""Torch tensors as numpy arrays that keep every bit (numpy has no bfloat16: it travels as uint16)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cai_dist.types import TensorSpec


def spec_of(name: str, tensor: Tensor, shape: tuple[int, ...] | None = None) -> TensorSpec:
    """Name, shape, dtype and bytes of a tensor; `shape` where the tensor itself is a shard."""
    shape = tuple(tensor.shape) if shape is None else shape
    count = 1
    for size in shape:
        count *= size
    return TensorSpec(name, shape, str(tensor.dtype).removeprefix("torch."), count * tensor.element_size())


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A CPU copy of `tensor`; bfloat16 as uint16 with the same bits."""
    copy = tensor.detach().to("cpu", copy=True).contiguous()
    return copy.view(torch.uint16).numpy() if copy.dtype == torch.bfloat16 else copy.numpy()


def from_numpy(array: np.ndarray, dtype: str) -> Tensor:
    """The inverse of :func:`to_numpy`; shares memory with `array`, which may be read-only."""
    writable = array if array.flags.writeable else array.copy()
    tensor = torch.from_numpy(writable)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
