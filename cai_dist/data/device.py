"""Tensors between host and device, many in one copy: to a GPU from pinned memory without a wait, back with one wait."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

_ALIGNED = 16
"""Bytes: where a tensor may begin in the buffer, whatever its dtype."""


def moved_together(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Some tensors of the CPU on `device`. On a GPU they share one buffer, which comes there by one copy that nobody
    waits for; elsewhere each is what `Tensor.to` makes of it."""
    device = torch.device(device)
    if device.type != "cuda" or any(tensor.device.type != "cpu" for tensor in tensors):
        return [tensor.to(device) for tensor in tensors]
    host, starts = _pinned(tensors)
    there = host.to(device, non_blocking=True)
    return [_view(there, start, tensor) for start, tensor in zip(starts, tensors, strict=False)]


def staged(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of some tensors of the CPU in pinned memory, from where a GPU takes them while the host goes on
    (`copy_(..., non_blocking=True)`). It may be let go at once: torch keeps it until the device has read it."""
    host, starts = _pinned(tensors)
    return [_view(host, start, tensor) for start, tensor in zip(starts, tensors, strict=False)]


def _pinned(tensors: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Tensors one after the other in pinned memory, and the byte where each begins."""
    starts = list(accumulate((-(-tensor.nbytes // _ALIGNED) * _ALIGNED for tensor in tensors), initial=0))
    host = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    for tensor, start in zip(tensors, starts, strict=False):
        _view(host, start, tensor).copy_(tensor)
    return host, starts


def _view(buffer: Tensor, start: int, tensor: Tensor) -> Tensor:
    """The bytes of `buffer` from `start` on, as what `tensor` is."""
    return buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)


def brought_together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The numbers of some tensors of one dtype and device on the CPU, each flat, by one copy: the host waits once,
    however many there are."""
    if not tensors:
        return []
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).cpu()
    ends = accumulate((tensor.numel() for tensor in tensors), initial=0)
    return [flat[start:end] for start, end in pairwise(ends)]


def host_bytes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Some flat tensors of uint8 on the CPU: those that are there as they are, those of a GPU in one pinned buffer that
    is filled at the speed of the bus; the host waits once."""
    if not tensors or tensors[0].device.type != "cuda":
        return [tensor.cpu() for tensor in tensors]
    ends = list(accumulate((tensor.numel() for tensor in tensors), initial=0))
    host = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=True)
    parts = [host[start:end] for start, end in pairwise(ends)]
    for part, tensor in zip(parts, tensors, strict=True):
        part.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return parts
