"""A model that keeps its architecture and buffers but gives the memory of its parameters back."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Mapping

import torch
from torch import nn

Shapes = Mapping[str, torch.Size]
"""Of the parameters that were let go, by name."""


def release_parameters(model: nn.Module) -> Shapes:
    """Let the elements of all parameters go; the parameters stay the same objects (tied ones stay tied), with nothing
    in them. Buffers are kept: no transfer brings them back."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)
    return_freed_memory()
    return shapes


def take_parameters(model: nn.Module, shapes: Shapes) -> None:
    """Memory for all parameters again; what is in it is arbitrary."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.new_empty(shapes[name])


def return_freed_memory() -> None:
    """Freed memory goes back to the GPU, and on Linux to the system: allocators would keep it for this process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
