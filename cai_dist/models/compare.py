"""What a model is tried on when it is loaded, and which differences are rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LENGTHS = (5, 3)
"""Tokens of the sequences of a check: few, so that it costs a moment even for a large model."""
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest difference that is rounding, relative to the largest number. Architectures that do not fit miss it widely."""


def probe_sequences(hf: Any) -> list[Tensor]:
    """Ids [T] of two sequences that share no token where the vocabulary allows it."""
    ids = torch.arange(1, 1 + sum(_LENGTHS), device=hf.device) % hf.config.get_text_config().vocab_size
    return list(ids.split(_LENGTHS))


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two results of a model in its own precision differ by rounding alone."""
    tolerance = _TOLERANCE.get(expected.dtype, 1e-3)
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def one_line(error: Exception) -> str:
    """Kind and words of an error of a library, at most 200 characters of them."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
