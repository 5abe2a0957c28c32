"""What a weight transfer is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One entry of a weight manifest."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorPiece:
    """`count` consecutive elements of a flattened tensor, from element `start` on."""

    name: str
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class WeightPart:
    """What one rank contributes to one bucket of a weight transfer: pieces of tensors, packed one after the other."""

    pieces: tuple[TensorPiece, ...]
    data: Any
    """The elements of all pieces in the dtype of their tensor, as bytes: one flat uint8 array (numpy or torch), or a
    tuple with one such array for each piece."""


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """A low-rank adapter that travels beside the weight that it changes: weight + scaling * b @ a, by the names that
    the three have in the manifest."""

    weight: str
    a: str
    b: str
    scaling: float


@dataclass(frozen=True, slots=True)
class WeightTerms:
    """What a receiver must know of a transfer beside its manifest."""

    sender: str
    """Who the frozen tensors are from: they are the same as long as this is."""
    kept: frozenset[str] = frozenset()
    """Frozen tensors that do not travel: the receiver has them from its last finished transfer."""
    adapters: tuple[AdapterSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """What one transfer sends: `buckets` hold the tensors of `manifest` that travel."""

    manifest: tuple[TensorSpec, ...]
    buckets: tuple[tuple[TensorSpec, ...], ...]
    terms: WeightTerms | None = None
    """None: the manifest is the plain model, adapters merged, and all of it travels."""
