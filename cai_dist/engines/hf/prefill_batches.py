"""How the sequences of the Hugging Face engine are put into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cai_dist.data.device import moved_together
from cai_dist.errors import DataError

PREFILL_TOKENS = 8192
"""Rows x columns of one pass over prompts."""
_PADDING = 256
"""Padding tokens for which another pass is not worth while."""


def left_padded(sequences: Sequence[tuple[int, ...]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and positions, long [B, T] each; every sequence ends in the last column."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.tensor([(0,) * (width - len(s)) + tuple(s) for s in sequences])
    lengths = torch.tensor([len(s) for s in sequences])
    positions = torch.arange(width) - (width - lengths).unsqueeze(-1)
    ids, mask, positions = moved_together([ids, (positions >= 0).long(), positions.clamp(min=0)], device)
    return ids, mask, positions


def longest_first(sequences: Sequence[tuple[int, ...]]) -> list[int]:
    """Indices of the sequences by length; equally long ones stay in order."""
    return sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), i))


def cut_by_cost(lengths: Sequence[int], rows: int, tokens: int) -> Iterator[slice]:
    """Consecutive batches of sequences, longest first: at most `rows` of them and `tokens` rows x columns (but at least
    one), and no more padding than 256 tokens or a quarter of what is real."""
    start, real = 0, 0
    for i, length in enumerate(lengths):
        area = (i - start + 1) * lengths[start]
        padding = area - real - length
        if i > start and (i - start == rows or area > tokens or padding > max(_PADDING, (real + length) // 4)):
            yield slice(start, i)
            start, real = i, 0
        real += length
    if lengths:
        yield slice(start, len(lengths))


def refuse_empty(sequences: Sequence[tuple[int, ...]]) -> None:
    """Raises DataError: a model says nothing about what follows on nothing."""
    if any(len(sequence) == 0 for sequence in sequences):
        raise DataError("a prompt or label has no tokens; each needs at least one")
