"""Memory of a model that leaves the device while nobody needs it, and comes back as it was.

What moves is a storage, not a tensor: its bytes go to the host and it shrinks to nothing (`UntypedStorage.resize_`);
later it takes its room again and the bytes come back. Every view of it (ZeRO's flat buffers and the parameters that
look into them, the optimiser's masters) stays the view that it was, so it is the same for every ZeRO stage and for
frozen weights, and the training cannot tell.

DeepSpeed 0.19's own `offload_states` does not reach that: its `reload_states` brings everything back at once where
scoring wants the weights alone, stage 3 asks for the compiled FusedAdam, stage 0 has neither call, and weights that
LoRA froze are not moved.

On CPU the same code runs: the bytes then only change their place in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cai_dist.types import MemoryPart

_SMALL = 4096
"""Bytes. Smaller storages (step counters, norms) stay where they are: each would cost a copy of its own."""
_MIB = 2**20


@dataclass(frozen=True)
class _Away:
    """A storage without its memory."""

    storage: Any
    nbytes: int
    host: Tensor | None
    """Its bytes; None for scratch space, whose content nobody reads again."""


class Offloader:
    """The parts of one model on `device`. `tensors` says what belongs to a part; asked each time, since an optimiser
    makes its states late. A storage belongs to the first part that names it. `scratch` belongs to the optimiser."""

    def __init__(
        self,
        device: torch.device,
        tensors: Mapping[MemoryPart, Callable[[], Iterable[Tensor]]],
        scratch: Callable[[], Iterable[Tensor]] = tuple,
    ) -> None:
        self._device, self._tensors, self._scratch = device, dict(tensors), scratch
        self._away: dict[MemoryPart, list[_Away]] = {}
        self._left: dict[MemoryPart, int] = {}

    def keep_on_device(self, parts: Collection[MemoryPart]) -> None:
        """Exactly `parts` are on the device afterwards. What leaves does so before anything comes."""
        leaving = [part for part in self._tensors if part not in parts and part not in self._away]
        if leaving and self._device.type == "cuda":
            torch.cuda.synchronize()  # the training may use streams of its own, which a copy would not wait for
        for part in leaving:
            self._put_away(part)
        if leaving and self._device.type == "cuda":
            torch.cuda.empty_cache()  # else the memory stays this process's, and the roles beside it get none
        self.need(*(part for part in self._tensors if part in parts))

    def need(self, *parts: MemoryPart) -> None:
        """Bring back those of `parts` that are away; the others stay where they are."""
        for part in parts:
            for item in self._away.pop(part, ()):
                item.storage.resize_(item.nbytes)
                if item.host is not None:
                    _bytes(item.storage).copy_(item.host)

    @property
    def left(self) -> dict[MemoryPart, float]:
        """MiB of each part that could not leave when it last was to: memory that torch did not allocate."""
        return {part: nbytes / _MIB for part, nbytes in self._left.items() if nbytes}

    def _put_away(self, part: MemoryPart) -> None:
        scratch = {_key(tensor) for tensor in self._scratch()} if part == "optimizer" else set()
        self._left[part], self._away[part] = 0, []
        for key, tensors in self._storages(part).items():
            if _shrinks(tensors):
                self._away[part].append(_put_storage_away(tensors[0], keep=key not in scratch))
            else:
                self._left[part] += _nbytes(tensors[0])

    def _storages(self, part: MemoryPart) -> dict[int, list[Tensor]]:
        """The storages of a part that have memory on the device, each with its tensors."""
        belong: set[int] = set()
        for other, found in self._tensors.items():
            if other == part:
                break
            belong |= {_key(tensor) for tensor in found()}
        storages: dict[int, list[Tensor]] = {}
        for tensor in (*self._tensors[part](), *(self._scratch() if part == "optimizer" else ())):
            if tensor.device.type == self._device.type and _nbytes(tensor) >= _SMALL and _key(tensor) not in belong:
                storages.setdefault(_key(tensor), []).append(tensor)
        return storages


def model_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers; under ZeRO-3 the rank's part of each parameter, too."""
    for tensor in (*model.parameters(), *model.buffers()):
        yield tensor
        if isinstance(part := getattr(tensor, "ds_tensor", None), Tensor):
            yield part


def optimizer_tensors(model: nn.Module, optimizer: Any) -> Iterator[Tensor]:
    """Gradients of the model and all that a (DeepSpeed) optimiser holds: masters, moments, gradient partitions."""
    yield from (p.grad for p in model.parameters() if p.grad is not None)
    if optimizer is not None:
        yield from _held(vars(optimizer), set())


def scratch_tensors(optimizer: Any) -> Iterator[Tensor]:
    """ZeRO's buffers of gradients on their way, which every backward pass fills anew."""
    for bucket in getattr(optimizer, "ipg_buckets", {}).values():
        if isinstance(bucket.buffer, Tensor):
            yield bucket.buffer


def _held(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor in nested containers and optimisers, with its gradient."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
        if thing.is_leaf and thing.grad is not None:
            yield thing.grad
    elif isinstance(thing, torch.optim.Optimizer):
        yield from _held(vars(thing), seen)
    elif isinstance(thing, Mapping):
        for value in thing.values():
            yield from _held(value, seen)
    elif isinstance(thing, list | tuple | set):
        for value in thing:
            yield from _held(value, seen)


def _put_storage_away(tensor: Tensor, keep: bool) -> _Away:
    storage = tensor.untyped_storage()
    nbytes, host = storage.nbytes(), None
    if keep:
        # Pinned: as fast as the bus, and the copy back does not wait for a second one on the host.
        host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=tensor.device.type == "cuda")
        host.copy_(_bytes(storage))
    storage.resize_(0)
    return _Away(storage, nbytes, host)


def _shrinks(tensors: list[Tensor]) -> bool:
    """Whether the storage of `tensors` can give its memory up. A file mapped into memory, as models are loaded on CPU,
    cannot: its only tensor gets a storage of its own."""
    first = tensors[0]
    if not first.untyped_storage().resizable() and all(tensor is first for tensor in tensors):
        first.data = first.data.clone()
    return bool(first.untyped_storage().resizable())


def _bytes(storage: Any) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _key(tensor: Tensor) -> int:
    """Of its storage: the same as long as the storage lives, with memory or without."""
    return int(tensor.untyped_storage()._cdata)


def _nbytes(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().nbytes())
