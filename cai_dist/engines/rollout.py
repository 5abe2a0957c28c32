"""What a worker needs of the machinery that generates text and scores labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np

from cai_dist.types import GenerateRequest, Generation, LabelRequest, TensorSpec

EngineStatus = Literal["empty", "stale", "ready"]


class RolloutEngine(Protocol):
    """One model that answers.

    `empty` (nothing loaded) -> `load` -> `ready`, or `stale` where a transfer is required first;
    `begin_weights` -> `stale`; `finish_weights` after the last tensor -> `ready`. Only a ready engine serves.
    """

    weight_version: int
    """Version of the weights that it serves with: 0 as loaded, then that of the last finished transfer; -1: none."""

    def load(self, path: str) -> None:
        """Load a model folder or hub name. Raises DataError."""
        ...

    def generate(self, request: GenerateRequest) -> list[Generation]:
        """One response per prompt, in order. Raises StaleEngineError unless ready."""
        ...

    def score_labels(self, request: LabelRequest) -> list[tuple[float, ...]]:
        """Per prompt, the summed log-probability (nats) of each label. Raises StaleEngineError unless ready."""
        ...

    def begin_weights(self, version: int, manifest: Sequence[TensorSpec]) -> None:
        """Open a transfer. Raises WeightTransferError if the manifest is not exactly this model's parameters."""
        ...

    def accept_weights(self, bucket: Mapping[str, np.ndarray]) -> None:
        """Copy some tensors in. Raises WeightTransferError; the engine then stays stale."""
        ...

    def finish_weights(self, version: int) -> None:
        """Close the transfer. Raises WeightTransferError if a tensor is missing."""
        ...

    def status(self) -> EngineStatus:
        """Whether it may serve."""
        ...
