"""What a worker needs of the machinery that trains (or scores with) one model over several ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from cai_dist.types import TensorSpec

B = TypeVar("B")
R = TypeVar("R")
Model = Callable[..., Any]
"""`CausalModel.forward`, (ids [N], lengths [B], wanted [N], temperature, with_entropy) -> (log-probabilities [N],
entropies [N]), or `ScalarHeadModel.forward`, (ids [N], lengths [B]) -> scalars [N] (and, with a language head and
`wanted` [N], log-probabilities [N])."""
LossFn = Callable[[Model, B, float], tuple[Tensor, dict[str, Tensor]]]
"""(model, micro-batch, denominator) -> (summed loss / denominator, metrics likewise); one forward pass, also for an
empty micro-batch, and the same metric names every time."""


class TrainEngine(Protocol):
    """One rank of a model. Every method is collective: all ranks call it with equally many micro-batches."""

    device: torch.device
    steps: int
    """Optimiser steps taken."""

    def step(self, micro_batches: Sequence[B], loss_fn: LossFn[B], denominator: float) -> dict[str, float]:
        """One optimiser step along d(sum of all losses over micro-batches and ranks) / d parameters.

        Returns the metrics summed over micro-batches and ranks, `grad_norm` (before clipping) and `lr`.
        """
        ...

    def infer(self, micro_batches: Sequence[B], fn: Callable[[Model, B], R]) -> list[R]:
        """`fn(model, micro-batch)` without gradients for each micro-batch of this rank."""
        ...

    def adapters_off(self) -> AbstractContextManager[None]:
        """While the block runs, `infer` sees the model without its LoRA adapters: the one that the training started
        from. Without adapters it changes nothing."""
        ...

    def save(self, folder: Path) -> None:
        """Write everything that the next step depends on; all ranks write into `folder`."""
        ...

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote, bit for bit. Raises CheckpointError."""
        ...

    def parameter_specs(self) -> list[TensorSpec]:
        """Name (as in the exported model), full shape and dtype of every parameter; a tied one appears once."""
        ...

    def full_parameters(self, names: Sequence[str]) -> dict[str, Any]:
        """The named parameters, whole, as numpy arrays on rank 0; an empty dict on the others."""
        ...

    def export(self, folder: Path) -> None:
        """Write the model in the Hugging Face layout (rank 0 writes), LoRA adapters merged into the weights."""
        ...

    def export_adapter(self, folder: Path, base: str) -> None:
        """Write the LoRA adapters alone in PEFT's layout (rank 0 writes); they belong to the model in `base`."""
        ...


def buckets(specs: Sequence[TensorSpec], bucket_bytes: int) -> Iterator[tuple[TensorSpec, ...]]:
    """Consecutive groups of at most `bucket_bytes` each (a larger tensor goes alone)."""
    group: list[TensorSpec] = []
    size = 0
    for spec in specs:
        if group and size + spec.nbytes > bucket_bytes:
            yield tuple(group)
            group, size = [], 0
        group.append(spec)
        size += spec.nbytes
    if group:
        yield tuple(group)
