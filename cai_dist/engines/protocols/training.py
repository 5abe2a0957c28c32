"""What a worker needs of the machinery that trains (or scores with) one model over several ranks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from cai_dist.config.training import ExportConfig
from cai_dist.types import MemoryPart
from cai_dist.weight_sync.protocol import WeightSource

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
    skipped: int
    """Steps that were not taken because their loss or gradient norm was not finite."""

    @property
    def weights(self) -> WeightSource:
        """Where transfers take the parameters from."""
        ...

    def step(self, micro_batches: Sequence[B], loss_fn: LossFn[B], denominator: float) -> dict[str, float]:
        """One optimiser step along d(sum of all losses over micro-batches and ranks) / d parameters.

        Ranks that compute sequences together (`ShardingConfig.sequence_parallel`) get the same micro-batches, whose
        loss and metrics count once. Returns the metrics summed over micro-batches and ranks, `grad_norm` (before
        clipping) and `lr`; `skipped` (1) for a step that was not taken. Raises NonFiniteError, on all ranks,
        for one more than `OptimizerConfig.skipped_steps`.
        """
        ...

    def infer(self, micro_batches: Sequence[B], fn: Callable[[Model, B], R]) -> list[R]:
        """`fn(model, micro-batch)` without gradients for each micro-batch of this rank."""
        ...

    def keep_on_device(self, parts: Collection[MemoryPart]) -> dict[MemoryPart, float]:
        """Exactly these parts of the memory stay on (or come back to) the device, bit for bit; the others go to the
        host. What a later call needs comes back by itself. Returns MiB of each part that could not leave. This one is
        not collective."""
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

    def export(self, folder: Path, settings: ExportConfig | None = None) -> None:
        """Write the model in the Hugging Face layout (rank 0 writes), LoRA adapters merged into the weights, in files
        as `settings` (`models.export`) says."""
        ...

    def export_adapter(self, folder: Path, base: str) -> None:
        """Write the LoRA adapters alone, with a scalar head that was trained beside them, in PEFT's layout (rank 0
        writes); they belong to the model in `base`."""
        ...
