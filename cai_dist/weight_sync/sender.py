"""The sending side of a weight transfer: each rank gives the elements that it holds, and nothing is gathered.

DeepSpeed's ZeRO-3 cuts a flattened parameter of n elements into equal slices of ceil(n / ranks), the last one padded,
and keeps slice r in `ds_tensor` on rank r (partition_parameters.py, `_partition_param`); that holds for parameters
below the persistence threshold too, which have a whole copy beside it. Without ZeRO-3 every rank has all elements, and
the same cut says which of them it sends.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from cai_dist.data.device import host_bytes
from cai_dist.errors import WeightTransferError
from cai_dist.models.lora import LoraFactors, PlainParameter, merged
from cai_dist.models.partition import full_shape
from cai_dist.models.tensors import flat_bytes, spec_of
from cai_dist.types import AdapterSpec, TensorPiece, TensorSpec, WeightPart, WeightPlan, WeightTerms
from cai_dist.weight_sync.protocol import buckets

Gathered = Callable[[list[Tensor]], AbstractContextManager[None]]
"""Parameters -> a block in which they are whole on every rank."""


def slices(specs: Sequence[TensorSpec], rank: int, ranks: int) -> list[TensorPiece]:
    """What rank `rank` of `ranks` sends of whole tensors; a small tensor may have nothing for the last ranks."""
    pieces = []
    for spec in specs:
        elements = math.prod(spec.shape)
        size = -(-elements // ranks)
        start = min(rank * size, elements)
        if count := min(size, elements - start):
            pieces.append(TensorPiece(spec.name, start, count))
    return pieces


class ParameterSource:
    """The parameters of one rank, by their names in the plain model, and the adapters on them.

    `sender` names the frozen parameters: whoever got them under this name need not get them again. A quantised weight
    is sent as what its codes stand for.
    """

    def __init__(
        self,
        parameters: Mapping[str, PlainParameter],
        factors: Mapping[str, LoraFactors],
        rank: int,
        ranks: int,
        gathered: Gathered,
    ) -> None:
        self._parameters, self._factors = dict(parameters), dict(factors)
        self._adapter_tensors = {
            name: tensor
            for weight, one in factors.items()
            for name, tensor in ((f"{weight}.lora_A", one.a), (f"{weight}.lora_B", one.b))
        }
        self._rank, self._ranks, self._gathered = rank, ranks, gathered
        self.renew()

    def renew(self) -> None:
        """The frozen parameters may have changed (a checkpoint was loaded): nobody has them any more."""
        self.sender = uuid.uuid4().hex

    def specs(self) -> list[TensorSpec]:
        """Name, full shape and dtype of every parameter of the plain model."""
        return [_spec(name, parameter) for name, parameter in self._parameters.items()]

    def plan(self, bucket_bytes: int, held: Sequence[str | None]) -> WeightPlan:
        """The buckets of one transfer to engines that hold the frozen parameters of `held` (a sender; "" none; None: an
        engine that takes the plain model whole, adapters merged)."""
        specs = self.specs()
        frozen = frozenset(name for name, parameter in self._parameters.items() if not parameter.requires_grad)
        if not frozen or None in held:
            return WeightPlan(tuple(specs), tuple(buckets(specs, bucket_bytes)))
        specs += [_spec(name, tensor) for name, tensor in self._adapter_tensors.items()]
        kept = frozen if all(sender == self.sender for sender in held) else frozenset()
        adapters = tuple(AdapterSpec(w, f"{w}.lora_A", f"{w}.lora_B", one.scaling) for w, one in self._factors.items())
        travelling = [spec for spec in specs if spec.name not in kept]
        terms = WeightTerms(self.sender, kept, adapters)
        return WeightPlan(tuple(specs), tuple(buckets(travelling, bucket_bytes)), terms)

    def part(self, bucket: Sequence[TensorSpec], merge: bool) -> WeightPart:
        """This rank's part of a bucket on the CPU, sharing memory with the parameters where they lie there: to be used
        before the next step. `merge` as for `pieces`."""
        found = list(self.pieces(bucket, merge))
        host = host_bytes([flat_bytes(tensor) for _, tensor in found])
        return WeightPart(tuple(piece for piece, _ in found), tuple(data.numpy() for data in host))

    def pieces(self, bucket: Sequence[TensorSpec], merge: bool) -> Iterator[tuple[TensorPiece, Tensor]]:
        """This rank's elements of a bucket, flat. With `merge` adapters are added to their weights; only their factors
        are gathered for it, all of the bucket at a time (collective).

        Raises: WeightTransferError where the elements do not lie in this process as described above.
        """
        factors = {spec.name: self._factors[spec.name] for spec in bucket if merge and spec.name in self._factors}
        whole: dict[str, LoraFactors] = {}
        if factors:
            with self._gathered([tensor for one in factors.values() for tensor in (one.a, one.b)]):
                whole = {n: LoraFactors(one.a.clone(), one.b.clone(), one.scaling) for n, one in factors.items()}
        tensors: dict[str, Any] = {**self._parameters, **self._adapter_tensors}
        for piece in slices(bucket, self._rank, self._ranks):
            held = self._held(piece, tensors[piece.name])
            yield piece, merged(held, whole[piece.name], piece.start) if piece.name in whole else held

    def whole(self, bucket: Sequence[TensorSpec], merge: bool) -> Iterator[tuple[TensorPiece, Tensor]]:
        """All elements of a bucket, flat, whatever part of them this rank holds: under ZeRO-3 the bucket is gathered
        (collective). `merge` as for `pieces`."""
        if self._ranks == 1:
            yield from self.pieces(bucket, merge)
            return
        tensors: dict[str, Any] = {**self._parameters, **self._adapter_tensors}
        factors = {spec.name: self._factors[spec.name] for spec in bucket if merge and spec.name in self._factors}
        needed = [tensors[spec.name] for spec in bucket]
        with self._gathered([*needed, *(tensor for one in factors.values() for tensor in (one.a, one.b))]):
            for piece in slices(bucket, 0, 1):
                flat: Tensor = tensors[piece.name].detach().reshape(-1)
                yield piece, merged(flat, factors[piece.name], 0) if piece.name in factors else flat

    def _held(self, piece: TensorPiece, parameter: Any) -> Tensor:
        """The elements of `piece`, flat, from where this rank keeps them."""
        if not hasattr(parameter, "ds_tensor"):
            whole: Tensor = parameter.detach().reshape(-1)
            return whole[piece.start : piece.start + piece.count]
        slot: Tensor = parameter.ds_tensor.detach()
        size = -(-parameter.ds_numel // self._ranks)
        if slot.dtype != parameter.dtype or slot.shape != (size,):
            raise WeightTransferError(
                f"{piece.name}: this rank holds {slot.dtype}{list(slot.shape)} of it, not the {size} elements of an "
                "equal share; quantised, hierarchical or swapped-out partitions cannot be sent"
            )
        return slot[: piece.count]


def _spec(name: str, parameter: Tensor | PlainParameter) -> TensorSpec:
    return spec_of(name, parameter, full_shape(parameter))
