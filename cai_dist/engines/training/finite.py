"""Numbers that decide what happens next, looked at on all ranks alike: losses, gradient norms, weights."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cai_dist.errors import NonFiniteError
from cai_dist.models.partition import held
from cai_dist.models.tensors import all_finite


def spoilt(loss: Tensor, total: Tensor) -> Tensor:
    """`loss` [] where `total` [] (the loss of the whole step) is finite, else NaN: then so are its gradients, and one
    look at their norm finds both. Without waiting for the device."""
    return loss * torch.where(torch.isfinite(total), 1.0, torch.nan).to(loss.dtype)


def refuse_weights(model: nn.Module, device: torch.device, steps: int, what: str) -> None:
    """Raise NonFiniteError, on all ranks, where a parameter of any is not finite (under ZeRO-3 each looks at its
    part); `what` would have been written."""
    mine = (held(p, dist.get_rank(), dist.get_world_size()) for p in model.parameters())
    bad = torch.tensor([0.0 if all_finite(mine) else 1.0], device=device)
    dist.all_reduce(bad)
    if bad.item():
        raise NonFiniteError(
            f"after {steps} optimiser steps the weights are not finite: no {what} is written; lower optimizer.lr or "
            "begin from another model"
        )


def step_problem(steps: int, loss: float, total: float, norm: float, device: torch.device) -> str:
    """One line for a step that is not taken: which, and on which ranks the loss (`loss` here, `total` over all) is not
    finite. Collective."""
    bad = torch.zeros(dist.get_world_size(), device=device)
    bad[dist.get_rank()] = 0.0 if math.isfinite(loss) else 1.0
    dist.all_reduce(bad)
    ranks = [str(rank) for rank, flag in enumerate(bad.tolist()) if flag]
    where = f" (rank {', '.join(ranks)})" if ranks else ""
    return f"optimiser step {steps + 1} is not taken: loss {total:g}{where}, gradient norm {norm:g}"
