"""What a model is tried on when it is loaded, and which differences are rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cai_dist.errors import ConfigError

_LENGTHS = (5, 3)
"""Tokens of the sequences of a check: few, so that it costs a moment even for a large model."""
_TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 0.1}
"""Largest difference that is rounding, relative to the largest number: in full precision for each layer, which lets
what transformers itself computes otherwise with a cache than without one be seen; in half precision altogether."""


def probe_ids(hf: Any, count: int) -> list[int]:
    """Token ids from all over the vocabulary, in order, different ones where it has so many. Not its first: there are
    the special tokens, of which a trained model in half precision makes whatever rounding decides."""
    size = hf.config.get_text_config().vocab_size
    return [number * size // (count + 1) for number in range(1, count + 1)]


def probe_sequences(hf: Any) -> list[Tensor]:
    """Ids [T] of two sequences that share no token where the vocabulary allows it."""
    return list(torch.tensor(probe_ids(hf, sum(_LENGTHS)), device=hf.device).split(_LENGTHS))


def close(hf: Any, found: Tensor, expected: Tensor, largest: Tensor | None = None) -> bool:
    """Whether two results of a model in its own precision differ by rounding alone. `largest`: the largest number that
    they were made from, where it is none of their own."""
    tolerance = _TOLERANCE.get(expected.dtype, _TOLERANCE[torch.float32])
    if expected.dtype != torch.bfloat16:
        tolerance *= max(2, getattr(hf.config.get_text_config(), "num_hidden_layers", 2))
    scale = expected.abs().max() if largest is None else largest
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * scale)


def one_line(error: Exception) -> str:
    """Kind and words of an error of a library, at most 200 characters of them."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextmanager
def runs_plainly(hf: Any) -> Iterator[None]:
    """A block in which transformers' own passes run. Raises ConfigError for a model with which they do not."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{type(hf).__name__}: transformers cannot run this model ({one_line(error)}); take another model"
        ) from error
