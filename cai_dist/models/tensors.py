"""Torch tensors as numpy arrays that keep every bit (numpy has no bfloat16: it travels as uint16)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cai_dist.types import TensorSpec

TORCH_DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Of the settings' names of precisions."""


class TensorLike(Protocol):
    """What has the shape and dtype of a tensor."""

    @property
    def shape(self) -> torch.Size:
        """Size of each dimension."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of an element."""
        ...

    def element_size(self) -> int:
        """Bytes of an element."""
        ...


def spec_of(name: str, tensor: TensorLike, shape: tuple[int, ...] | None = None) -> TensorSpec:
    """Name, shape, dtype and bytes of a tensor; `shape` where the tensor itself is a shard."""
    shape = tuple(tensor.shape) if shape is None else shape
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(name, shape, dtype, math.prod(shape) * tensor.element_size())


def carrier(dtype: str) -> np.dtype[np.generic]:
    """The numpy dtype that holds the elements of a torch dtype such as "float32"."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def item_size(dtype: str) -> int:
    """Bytes of one element of a torch dtype such as "float32"."""
    return carrier(dtype).itemsize


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A CPU copy of `tensor`; bfloat16 as uint16 with the same bits."""
    copy = tensor.detach().to("cpu", copy=True).contiguous()
    return copy.view(torch.uint16).numpy() if copy.dtype == torch.bfloat16 else copy.numpy()


def from_numpy(array: np.ndarray, dtype: str) -> Tensor:
    """The inverse of `to_numpy`; shares memory with `array`, which may be read-only."""
    writable = array if array.flags.writeable else array.copy()
    tensor = torch.from_numpy(writable)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def elements(data: np.ndarray | Tensor, start: int, count: int, dtype: str) -> np.ndarray | Tensor:
    """`count` elements of a torch dtype such as "float32", from byte `start` of flat bytes on; bfloat16 is uint16 in a
    numpy array. Shares memory where it can."""
    part = data[start : start + count * item_size(dtype)]
    if isinstance(part, np.ndarray):
        return part.view(carrier(dtype))
    aligned = part if part.storage_offset() % item_size(dtype) == 0 else part.clone()
    return aligned.view(getattr(torch, dtype))


def read_only_tensor(array: np.ndarray | Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor on the memory of `array` (in the carrier of `dtype`), to be read only."""
    if isinstance(array, Tensor):
        return array
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the array is not writable: nobody writes to it
        tensor = torch.from_numpy(array)
    return tensor.view(dtype)


def copy_elements(target: Tensor, data: np.ndarray | Tensor) -> None:
    """Copy flat elements (in the carrier of the dtype) into the flat, contiguous `target` of as many elements."""
    if isinstance(data, np.ndarray) and target.device.type == "cpu":
        # numpy copies by memcpy, which past the caches takes half the time of torch's copy_ on one thread
        np.copyto(flat_bytes(target).numpy(), data.view(np.uint8))
    else:
        target.copy_(read_only_tensor(data, target.dtype))


def flat_bytes(tensor: Tensor) -> Tensor:
    """The elements of a contiguous tensor as uint8 [bytes], sharing its memory."""
    return tensor.detach().view(-1).view(torch.uint8)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every element is a number; no copies are made."""
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor.detach())  # NaN wins over every number
            if not (math.isfinite(low.item()) and math.isfinite(high.item())):
                return False
    return True
