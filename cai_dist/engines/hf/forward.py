"""How a transformers causal language model is called for sequences that are padded on the left."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from torch import Tensor
from transformers import DynamicCache

_CACHE_NAMES = ("past_key_values", "cache_params")
"""What transformers' models call a cache of theirs."""


def forward_arguments(
    model: Any, ids: Tensor, mask: Tensor, positions: Tensor, past: DynamicCache | None = None
) -> dict[str, Any]:
    """Arguments for ids [B, T] with a mask [B, columns of the cache + T] and positions [B, T]; some models make these
    by themselves from the mask, or have none.

    Raises: LookupError for a model that takes no cache, if there is one.
    """
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in _taken(model.__class__):
        given["position_ids"] = positions
    if past is not None:
        name = cache_argument(model)
        given[name] = past
        if name == "cache_params":  # a state has no columns: the mask is of the ids alone
            given["attention_mask"] = mask[:, -ids.shape[1] :]
    return given


def cache_argument(model: Any) -> str:
    """The name under which the model takes a cache. Raises LookupError for one that takes none."""
    name = next((name for name in _CACHE_NAMES if name in _taken(model.__class__)), None)
    if name is None:
        raise LookupError("it takes no cache that transformers has in common for its models")
    return name


@cache
def _taken(kind: Any) -> frozenset[str]:
    """Names of what the forward of a class of models takes."""
    return frozenset(inspect.signature(kind.forward).parameters)
