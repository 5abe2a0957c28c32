"""What a worker needs of the machinery that generates text and scores labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from cai_dist.types import GenerateRequest, Generation, LabelRequest, TensorSpec, WeightPart, WeightTerms

EngineStatus = Literal["empty", "stale", "ready", "asleep"]


class RolloutEngine(Protocol):
    """One model that answers.

    `empty` (nothing loaded) -> `load` -> `ready`, or `stale` where a transfer is required first;
    `begin_weights` -> `stale`; `finish_weights` after the last tensor -> `ready`. Only a ready engine serves.
    `sleep` -> `asleep`, `wake` -> `stale`: a sleeping engine gives its memory up, weights included, and what it wakes
    with must be transferred (or loaded) before it serves.
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

    def accept_weights(self, parts: Sequence[WeightPart]) -> None:
        """Copy one bucket in: the parts of all ranks that send, which together hold whole tensors. Raises
        WeightTransferError (unknown, twice, truncated); the engine then stays stale."""
        ...

    def finish_weights(self, version: int) -> None:
        """Close the transfer; caches of the old weights are dropped. Raises WeightTransferError if a tensor is
        missing."""
        ...

    def sleep(self) -> None:
        """Give up the memory of weights and caches; a sleeping engine may be put to sleep again."""
        ...

    def wake(self) -> None:
        """Take the memory again; the engine is stale until weights have come. Nothing happens to one that is awake."""
        ...

    def status(self) -> EngineStatus:
        """Whether it may serve."""
        ...


@runtime_checkable
class KeepsWeights(Protocol):
    """An engine that keeps frozen tensors from one transfer to the next, and merges adapters itself."""

    def weights_held(self) -> str:
        """The sender whose frozen tensors it has; empty: nobody's, everything must come."""
        ...

    def begin_weights(self, version: int, manifest: Sequence[TensorSpec], terms: WeightTerms | None = None) -> None:
        """Open a transfer as in `RolloutEngine`; with `terms` the manifest names the factors of adapters beside the
        model's parameters, and tensors may be kept. Raises WeightTransferError also where what is kept is not here."""
        ...
