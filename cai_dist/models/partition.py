"""Parameters that no process holds whole: how ZeRO-3 cuts them, and how numbers get into them without a gather.

DeepSpeed cuts a flattened parameter of n elements into slices of ceil(n / ranks), the last one padded, and keeps a
rank's slice in `ds_tensor` (partition_parameters.py, `_partition_param`). What is so small that every rank keeps it
whole it gathers itself, later.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

_NOBODY = "a partitioned parameter, and nobody says how it is cut"


class Partition(Protocol):
    """How the parameters of a model are cut over the ranks of a group while it is built (ZeRO-3)."""

    rank: int
    ranks: int

    def construction(self) -> AbstractContextManager[Any]:
        """A block in which every module that is made is cut as soon as it is there. Collective."""
        ...

    def everywhere(self, here: bool) -> bool:
        """Whether it is so on all ranks. Collective."""
        ...


def is_partitioned(parameter: Any) -> bool:
    """Whether this process may hold a part of the parameter alone."""
    return hasattr(parameter, "ds_tensor")


def full_shape(parameter: Any) -> tuple[int, ...]:
    """The shape of the whole parameter, however much of it is here."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def held(parameter: Any, rank: int, ranks: int) -> Tensor:
    """What of a parameter is here, on rank `rank` of `ranks`: its slice, flat, or all. What pads the slice is no part
    of it: memory that nobody has written."""
    if not is_partitioned(parameter):
        whole: Tensor = parameter.detach()
        return whole
    size = -(-parameter.ds_numel // ranks)
    found: Tensor = parameter.ds_tensor.detach()
    return found[: max(0, min(size, parameter.ds_numel - rank * size))]


@torch.no_grad()
def change(parameter: Any, new: Callable[[Tensor, int], Tensor], partition: Partition | None) -> None:
    """Exchange the elements of a parameter that are here: `new` gets flat ones and the place of the first of them in
    the whole flattened parameter."""
    if not is_partitioned(parameter):
        parameter.copy_(new(parameter.reshape(-1), 0).view(parameter.shape))
        return
    assert partition is not None, _NOBODY
    mine = held(parameter, partition.rank, partition.ranks)
    start = min(partition.rank * -(-parameter.ds_numel // partition.ranks), parameter.ds_numel)
    mine.copy_(new(mine, start))


@torch.no_grad()
def put(parameter: Any, whole: Tensor, partition: Partition | None) -> None:
    """Make the elements of a parameter those of `whole` (of the same shape); each rank copies what it holds."""
    flat = whole.reshape(-1)
    change(parameter, lambda part, start: flat[start : start + part.numel()], partition)
