"""Pinned memory of a machine without a GPU: ordinary memory of which is known that it was asked for as pinned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_KEPT: dict[int, Any] = {}
"""Storages by address; they live until `forget`, so that no address means two."""


def mark(tensor: Tensor) -> Tensor:
    """The memory of `tensor` counts as pinned from here on."""
    storage = tensor.untyped_storage()
    _KEPT[storage.data_ptr()] = storage
    return tensor


def is_pinned(tensor: Tensor) -> bool:
    """Whether `tensor` lies in memory that was asked for as pinned."""
    return tensor.untyped_storage().data_ptr() in _KEPT


def forget() -> None:
    """Nothing is pinned."""
    _KEPT.clear()


def install() -> None:
    """`Tensor.pin_memory` and `Tensor.is_pinned` of this process, which a build without CUDA refuses."""
    torch.Tensor.pin_memory = lambda tensor, *_: mark(tensor.clone())  # type: ignore[method-assign,assignment]
    torch.Tensor.is_pinned = lambda tensor, *_: is_pinned(tensor)  # type: ignore[method-assign,assignment]
