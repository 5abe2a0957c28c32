"""The weight files of a model folder, written one after the other: nobody holds all of a model at once.

Files hold the names that the checkpoint came with, which may be others than the model's (the experts of a layer are one
tensor in a model and many in a file). Transformers turns one into the other; here it does so for one layer at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cai_dist.errors import CaiError
from cai_dist.models.checkpoint_names import groups_by_layer, to_checkpoint
from cai_dist.models.tensors import spec_of
from cai_dist.types import TensorSpec
from cai_dist.weight_sync.protocol import buckets


class WeightFiles:
    """The files of the tensors `specs` of a model, in `folder`, each of at most `max_bytes` (a larger tensor gets its
    own), in `dtype` (None: as they come).

    `groups` are names that must be given to `add` together, in this order: a layer each. The names of the files say how
    many there are, so what will be in them is found beforehand, on tensors without memory.
    """

    def __init__(
        self, hf: Any, specs: Sequence[TensorSpec], folder: Path, max_bytes: int, dtype: torch.dtype | None = None
    ) -> None:
        self._hf, self._folder, self._dtype = hf, folder, dtype
        unwanted = set(hf._keys_to_ignore_on_save or ())
        outlines = {spec.name: self._outline(spec) for spec in specs if spec.name not in unwanted}
        self.groups = groups_by_layer(hf, outlines)
        written = [to_checkpoint(hf, {name: outlines[name] for name in group}) for group in self.groups]
        entries = [spec_of(name, tensor) for part in written for name, tensor in part.items()]
        self._files = [[spec.name for spec in bucket] for bucket in buckets(entries, max_bytes)]
        self._size = sum(spec.nbytes for spec in entries)
        self._waiting: dict[str, Tensor] = {}
        self._done = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the whole tensors of the next group, on the CPU; files that are then complete are written."""
        for name, tensor in to_checkpoint(self._hf, tensors).items():
            self._waiting[name] = tensor.to(self._dtype or tensor.dtype).contiguous()
        while self._done < len(self._files) and all(name in self._waiting for name in self._files[self._done]):
            names = self._files[self._done]
            save_file({n: self._waiting.pop(n) for n in names}, self._folder / self._name(), metadata={"format": "pt"})
            self._done += 1

    def close(self) -> None:
        """Write the index, where there are several files. Raises CaiError where tensors are missing."""
        if self._waiting or self._done < len(self._files):
            raise CaiError(
                f"{self._folder}: {len(self._files) - self._done} of {len(self._files)} weight files unwritten"
            )
        if len(self._files) == 1:
            return
        self._done = 0
        places: dict[str, str] = {}
        for names in self._files:
            places |= dict.fromkeys(names, self._name())
            self._done += 1
        index = {"metadata": {"total_size": self._size}, "weight_map": dict(sorted(places.items()))}
        target = self._folder / "model.safetensors.index.json"
        target.write_text(json.dumps(index, indent=2) + "\n", "utf-8")

    def _name(self) -> str:
        """Of the file that is next."""
        if len(self._files) == 1:
            return "model.safetensors"
        return f"model-{self._done + 1:05d}-of-{len(self._files):05d}.safetensors"

    def _outline(self, spec: TensorSpec) -> Tensor:
        dtype = getattr(torch, spec.dtype)
        asked = self._dtype if self._dtype is not None and dtype.is_floating_point else dtype
        return torch.empty(spec.shape, dtype=asked, device="meta")
