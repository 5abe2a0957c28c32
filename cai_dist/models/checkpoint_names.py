"""Names and shapes of a model's tensors in its checkpoint, which may be others than the model's own.

Transformers keeps the experts of a layer as one tensor where the files (and engines that read files) have one each, and
Mixtral's under another name. Transformers turns one into the other; here it does so for as few tensors at a time as the
conversion allows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

_LAYER = re.compile(r"^(.*?\.\d+)\.")


def to_checkpoint(hf: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of the checkpoint, from those of the model `hf` (which may be without memory)."""
    found: dict[str, Tensor] = revert_weight_conversion(hf, dict(tensors))
    return found


def groups_by_layer(hf: Any, outlines: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of `outlines` in groups that can be converted one after the other: a layer each, all others each alone;
    one group where a conversion reaches across layers."""
    groups: dict[str, list[str]] = {}
    for name in outlines:
        found = _LAYER.match(name)
        groups.setdefault(found.group(1) if found else name, []).append(name)
    parts = [to_checkpoint(hf, {name: outlines[name] for name in group}) for group in groups.values()]
    if sorted(name for part in parts for name in part) != sorted(to_checkpoint(hf, outlines)):
        return [list(outlines)]
    return list(groups.values())


def converts_alone(hf: Any, outlines: Mapping[str, Tensor]) -> bool:
    """Whether every tensor of `outlines`, all of the model `hf`, can be converted without any other."""
    whole = {name: tensor.shape for name, tensor in to_checkpoint(hf, outlines).items()}
    found: dict[str, Sequence[int]] = {}
    for name, tensor in outlines.items():
        try:
            found |= {made: part.shape for made, part in to_checkpoint(hf, {name: tensor}).items()}
        except Exception:  # a conversion that misses its other tensors fails in its own way
            return False
    return found == whole
