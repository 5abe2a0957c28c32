"""How long a sequence a model takes, told from its configuration before anything is loaded."""

from __future__ import annotations

from typing import Any

from cai_dist.config.training import Layout
from cai_dist.models.layout import attention_window

_BY_LONGEST = ("dynamic", "longrope")
"""Rotary embeddings whose frequencies follow from the longest sequence of a forward pass."""


def context_problem(config: Any, context: int, layout: Layout | None) -> str | None:
    """Why sequences of `context` tokens do not fit the model with this transformers configuration; None where they do.

    `layout` is how it is trained and scored; None for a model that only generates, which transformers' own attention
    does.
    """
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    for rope in _ropes(text):
        original = rope.get("original_max_position_embeddings") or positions
        if original is not None and context > original and any(kind in rope["rope_type"] for kind in _BY_LONGEST):
            return (
                f"has rope_type {rope['rope_type']}, with which sequences beyond {original} tokens change the others "
                f"of their batch; must be at most {original}"
            )
    if positions is not None and context > positions:
        return f"takes at most {positions} tokens"
    if layout == "packed" and context > (window := attention_window(config)):
        return f"has attention that sees {window:g} tokens and then cannot be packed; set models.layout=padded"
    return None


def _ropes(text: Any) -> list[dict[str, Any]]:
    """The settings of rotary embeddings: one for the model, or one for each type of layer."""
    found = getattr(text, "rope_parameters", None) or {}
    each = [found] if "rope_type" in found else [one for one in found.values() if isinstance(one, dict)]
    return [one for one in each if "rope_type" in one]
