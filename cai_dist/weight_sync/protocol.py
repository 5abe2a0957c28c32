"""What a weight transfer asks of the machinery that trains: parameters by name, bucket by bucket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from cai_dist.types import TensorPiece, TensorSpec, WeightPart, WeightPlan


class WeightSource(Protocol):
    """What one rank gives of its model's parameters, by their names in the exported model (a tied one appears once)."""

    def plan(self, bucket_bytes: int, held: Sequence[str | None]) -> WeightPlan:
        """The buckets of one transfer to engines of which `held` says whose frozen parameters they have ("": nobody's;
        None: the engine takes the plain model whole, adapters merged)."""
        ...

    def part(self, bucket: Sequence[TensorSpec], merge: bool) -> WeightPart:
        """This rank's part of a bucket, on the CPU, for use before the next step; with `merge` adapters are added to
        their weights (collective). Raises WeightTransferError."""
        ...

    def pieces(self, bucket: Sequence[TensorSpec], merge: bool) -> Iterator[tuple[TensorPiece, Tensor]]:
        """The elements of a bucket, piece by piece on the engine's device, each flat."""
        ...

    def whole(self, bucket: Sequence[TensorSpec], merge: bool) -> Iterator[tuple[TensorPiece, Tensor]]:
        """All elements of a bucket, tensor by tensor, not this rank's alone (collective)."""
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
