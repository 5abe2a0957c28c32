"""The receiving side of a weight transfer: every element of every tensor exactly once, or the engine stays stale.

A transfer comes in buckets of whole tensors, and a bucket in parts, one of each rank that sends. What may still come is
written in a ledger that all engines share; they differ in where the elements go.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cai_dist.data.device import staged
from cai_dist.errors import WeightTransferError
from cai_dist.models.lora import LoraFactors, merged
from cai_dist.models.tensors import carrier, copy_elements, elements, item_size, read_only_tensor, spec_of, to_numpy
from cai_dist.types import TensorPiece, TensorSpec, WeightPart, WeightTerms

Elements = np.ndarray | Tensor


class TransferLedger:
    """What of one transfer has come: `admit` every bucket, then `finish`.

    `kept` are tensors of the manifest that do not travel: the engine has them already. Every refusal raises
    WeightTransferError and notes nothing.
    """

    def __init__(self, version: int, manifest: Sequence[TensorSpec], kept: frozenset[str] = frozenset()) -> None:
        self.version = version
        self.specs = {spec.name: spec for spec in manifest}
        if len(self.specs) != len(manifest):
            raise self.error("the manifest names a tensor twice")
        for spec in manifest:
            if spec.nbytes != math.prod(spec.shape) * item_size(spec.dtype):
                raise self.error(f"the manifest gives {_described(spec)} {spec.nbytes} bytes")
        self._spans: dict[str, list[tuple[int, int]]] = {name: [] for name in self.specs if name not in kept}

    def admit(self, parts: Sequence[WeightPart]) -> list[tuple[TensorPiece, Elements]]:
        """Check one bucket and note what it brings: each piece with its elements, flat, in the carrier of its dtype
        (bfloat16 as uint16 in a numpy array), sharing memory with the part."""
        spans = {piece.name: list(self._spans.get(piece.name, ())) for part in parts for piece in part.pieces}
        found = [(piece, data) for part in parts for piece, data in self._pieces(part)]
        for piece, _ in found:
            self._insert(spans[piece.name], piece)
        for name, taken in spans.items():
            if (count := _covered(taken)) != self._elements(name):
                raise self.error(f"{name} came with {count} of its {self._elements(name)} elements")
        self._spans |= spans
        return found

    def finish(self, version: int) -> None:
        """The transfer is whole."""
        if version != self.version:
            raise WeightTransferError(f"finish of weight version {version} while version {self.version} is open")
        missing = sorted(name for name, taken in self._spans.items() if _covered(taken) != self._elements(name))
        if missing:
            raise self.error(f"{len(missing)} tensors never came, first {missing[0]}")

    def _pieces(self, part: WeightPart) -> Iterator[tuple[TensorPiece, Elements]]:
        """The pieces of a part, each with its elements. The data must be exactly as long as the pieces say."""
        for piece in part.pieces:
            if piece.name not in self._spans:
                known = piece.name in self.specs
                raise self.error(f"{piece.name} came, which stays" if known else f"unknown tensor {piece.name!r}")
        if not isinstance(part.data, tuple):
            yield from self._cut(part.pieces, part.data)
        elif len(part.data) == len(part.pieces):
            for piece, data in zip(part.pieces, part.data, strict=True):
                yield from self._cut((piece,), data)
        else:
            raise self.error(f"a part of {len(part.pieces)} pieces came with {len(part.data)} arrays")

    def _cut(self, pieces: Sequence[TensorPiece], data: Any) -> Iterator[tuple[TensorPiece, Elements]]:
        """Pieces that lie one after the other in flat bytes."""
        sizes = [piece.count * item_size(self.specs[piece.name].dtype) for piece in pieces]
        if not _is_flat_bytes(data) or data.nbytes != sum(sizes):
            came = f"{data.nbytes} bytes" if _is_flat_bytes(data) else f"a {type(data).__name__} that is no flat bytes"
            first = pieces[0].name if pieces else "nothing"
            raise self.error(f"{first} came as {came} instead of {sum(sizes)} bytes")
        start = 0
        for piece, size in zip(pieces, sizes, strict=True):
            yield piece, elements(data, start, piece.count, self.specs[piece.name].dtype)
            start += size

    def _insert(self, taken: list[tuple[int, int]], piece: TensorPiece) -> None:
        """Note a piece among the spans of its tensor, which stay in order."""
        span = piece.start, piece.start + piece.count
        if piece.start < 0 or piece.count < 1 or span[1] > self._elements(piece.name):
            raise self.error(f"{piece.name} has no elements {span[0]} to {span[1]}")
        at = bisect_left(taken, span)
        if (at > 0 and taken[at - 1][1] > span[0]) or (at < len(taken) and taken[at][0] < span[1]):
            raise self.error(f"{piece.name} came twice: elements {span[0]} to {span[1]}")
        taken.insert(at, span)

    def _elements(self, name: str) -> int:
        return math.prod(self.specs[name].shape)

    def error(self, what: str) -> WeightTransferError:
        """A refusal that names the version."""
        return WeightTransferError(f"weight version {self.version}: {what}")


def whole_tensors(manifest: Sequence[TensorSpec], parts: Sequence[WeightPart]) -> dict[str, Elements]:
    """The tensors of one bucket, whole, with memory of their own: what came on a GPU as tensors there, everything else
    as numpy arrays (bfloat16 as uint16 with the same bits).

    For engines that take tensors whole; `manifest` may name more than this bucket brings. Raises WeightTransferError
    for an unknown tensor, elements that come twice, and a tensor or part that is not whole.
    """
    ledger = TransferLedger(-1, manifest)
    whole: dict[str, Elements] = {}
    for piece, data in ledger.admit(parts):
        spec, span = ledger.specs[piece.name], slice(piece.start, piece.start + piece.count)
        if isinstance(data, Tensor) and data.is_cuda:
            room = whole.setdefault(piece.name, torch.empty(spec.shape, dtype=data.dtype, device=data.device))
            room.reshape(-1)[span] = data
        else:
            here: Any = whole.setdefault(piece.name, np.empty(spec.shape, carrier(spec.dtype)))
            here.reshape(-1)[span] = to_numpy(data) if isinstance(data, Tensor) else data
    return whole


@dataclass(frozen=True)
class HeldWeights:
    """What an engine may keep from one finished transfer to the next: the frozen tensors of `sender` stay where they
    are, those that adapters change as copies without them."""

    sender: str
    bases: dict[str, Tensor]


class WeightReceiver:
    """One transfer into `parameters` (name -> parameter): made by `begin`, then `accept` ..., then `finish`.

    With adapters in `terms` the manifest has more tensors than the model: their factors, which are merged into the
    weights at the end. `held` is what the last transfer left; it is needed for terms that keep tensors. Every refusal
    raises WeightTransferError and leaves the transfer unfinished; what was refused is not copied.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        version: int,
        manifest: Sequence[TensorSpec],
        terms: WeightTerms | None = None,
        held: HeldWeights | None = None,
    ) -> None:
        self._terms = terms or WeightTerms("")
        self._ledger = TransferLedger(version, manifest, self._terms.kept)
        self._parameters = dict(parameters)
        self._factors = self._room_for_factors()
        refuse_other_model(self._parameters | self._factors, self._ledger)
        if self._terms.kept and (held is None or held.sender != self._terms.sender):
            raise self._ledger.error(f"{len(self._terms.kept)} tensors do not come and are not here from before")
        self._bases = held.bases if held is not None and self._terms.kept else {}

    def accept(self, parts: Sequence[WeightPart]) -> None:
        """Check all parts of one bucket, then copy them."""
        targets = self._parameters | self._factors
        pieces = self._ledger.admit(parts)
        flats = [targets[piece.name].detach().view(-1)[piece.start : piece.start + piece.count] for piece, _ in pieces]
        arrays = [data.view(np.uint8) for _, data in pieces if isinstance(data, np.ndarray)]
        if flats and flats[0].is_cuda and len(arrays) == len(pieces):
            here = staged([read_only_tensor(array, torch.uint8) for array in arrays])
            for flat, data in zip(flats, here, strict=True):
                flat.copy_(data.view(flat.dtype), non_blocking=True)
        else:
            for flat, (_, came) in zip(flats, pieces, strict=True):
                copy_elements(flat, came)

    def finish(self, version: int) -> HeldWeights:
        """The transfer is whole: adapters go into their weights. Returns what the next transfer may build on."""
        self._ledger.finish(version)
        bases: dict[str, Tensor] = {}
        for adapter in self._terms.adapters:
            weight = self._parameters[adapter.weight].detach()
            kept = adapter.weight in self._terms.kept
            bases[adapter.weight] = self._bases[adapter.weight] if kept else weight.clone()
            factors = LoraFactors(self._factors[adapter.a], self._factors[adapter.b], adapter.scaling)
            weight.copy_(merged(bases[adapter.weight], factors))
        return HeldWeights(self._terms.sender, bases)

    def _room_for_factors(self) -> dict[str, Tensor]:
        names = {name for adapter in self._terms.adapters for name in (adapter.a, adapter.b)}
        device = next(iter(self._parameters.values())).device
        return {
            name: torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=device)
            for name, spec in self._ledger.specs.items()
            if name in names
        }


def refuse_other_model(parameters: Mapping[str, Tensor], ledger: TransferLedger) -> None:
    """Refuse a transfer whose manifest names other tensors, shapes or dtypes than the engine's `parameters`. Raises
    WeightTransferError."""
    unknown = sorted(set(ledger.specs) - set(parameters))
    absent = sorted(set(parameters) - set(ledger.specs))
    if unknown or absent:
        what = f"names {unknown[0]}, which this model lacks" if unknown else f"lacks {absent[0]}"
        raise WeightTransferError(f"weight version {ledger.version}: the manifest {what}")
    for name, spec in ledger.specs.items():
        own = spec_of(name, parameters[name])
        if spec != own:
            raise WeightTransferError(
                f"weight version {ledger.version}: {name} is announced as {_described(spec)} of {spec.nbytes} bytes "
                f"but is {_described(own)} of {own.nbytes} bytes here"
            )


def _is_flat_bytes(data: Any) -> bool:
    if isinstance(data, Tensor):
        return data.dtype == torch.uint8 and data.ndim == 1 and data.is_contiguous()
    return isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 1 and data.flags.c_contiguous


def _covered(spans: Sequence[tuple[int, int]]) -> int:
    return sum(end - start for start, end in spans)


def _described(spec: TensorSpec) -> str:
    return f"{spec.dtype}{list(spec.shape)}"
