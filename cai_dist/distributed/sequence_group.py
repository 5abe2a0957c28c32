"""The all-to-all and the gather of sequence parallelism, with gradients, between neighbouring ranks."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class NeighbourGroup:
    """This rank's group (`cai_dist.models.sequence_parallel.SequenceGroup`) where ranks 0 to `size` - 1 are the first
    one, the next `size` the second, and so on: neighbours mostly share a host. `timeout`: seconds of one call.

    Collective over all ranks of the process. `size` must divide their number.
    """

    def __init__(self, size: int, timeout: float) -> None:
        self.size, self.rank = size, dist.get_rank() % size
        self._group = _neighbours(dist.group.WORLD, size, timeout)

    def exchange(self, blocks: Tensor) -> Tensor:
        """Block i [size, ...] to rank i, and the block of rank i back."""
        found: Tensor = _Exchange.apply(blocks, self._group)
        return found

    def gathered(self, mine: Tensor) -> Tensor:
        """[n, ...] of all ranks one after the other, [size * n, ...]."""
        found: Tensor = _Gather.apply(mine, self.rank, self.size, self._group)
        return found


@cache
def _neighbours(world: Any, size: int, timeout: float) -> Any:
    """The group of this rank in `world`; made once a process, which may train several models one after the other: on a
    GPU each has buffers of its own."""
    mine = None
    for first in range(0, world.size(), size):  # every rank makes every group, in one order
        made = dist.new_group(list(range(first, first + size)), timeout=timedelta(seconds=timeout))
        mine = made if first <= world.rank() < first + size else mine
    return mine


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, blocks: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _all_to_all(blocks, group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(grad, ctx.group), None


class _Gather(torch.autograd.Function):
    """Every rank computes the loss of all of it: a sum of gradients over the ranks would count each token so often."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, rank: int, size: int, group: Any) -> Tensor:
        ctx.own = slice(rank * len(mine), (rank + 1) * len(mine))
        whole = mine.new_empty(size * len(mine), *mine.shape[1:])
        dist.all_gather_into_tensor(whole, mine.contiguous(), group=group)
        return whole

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad[ctx.own], None, None, None


def _all_to_all(blocks: Tensor, group: Any) -> Tensor:
    blocks = blocks.contiguous()
    found = torch.empty_like(blocks)
    dist.all_to_all_single(found, blocks, group=group)
    return found
