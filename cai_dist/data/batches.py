"""From lists of token ids to padded tensors, and from lists of items to equal schedules over ranks.

Everything here is a pure function: what a step trains on follows from (number of items, seed, step), so the data cursor
of a checkpoint is the step itself.

An empty micro-batch becomes one stand-in row of two tokens that belongs to no mask: it runs through the model like any
other, so that no rank misses a collective call, and adds exactly 0 to the loss.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from cai_dist.losses.logprobs import response_mask
from cai_dist.types import ScoredPair, TokenSequence, Trajectory

T = TypeVar("T")
_STAND_IN = (0, 0)


class Sample(Protocol):
    """A prompt with its response: `Generation` or `Trajectory`."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Token ids of the conversation with the answer opened."""
        ...

    @property
    def response_ids(self) -> tuple[int, ...]:
        """Token ids of the answer, as they were sampled."""
        ...


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Sequences padded on the right. Masks follow from the lengths, never from the ids."""

    ids: Tensor
    """long [B, T]."""
    lengths: Tensor
    """long [B], tokens of prompt and response."""
    prompt_lengths: Tensor
    """long [B]."""
    empty: bool = False
    """The only row is the stand-in of an empty micro-batch."""

    def __len__(self) -> int:
        """Real rows: 0 for the stand-in."""
        return 0 if self.empty else self.ids.shape[0]

    @property
    def attention_mask(self) -> Tensor:
        """long [B, T], 1 for t < length."""
        return response_mask(torch.zeros_like(self.lengths), self.lengths, self.ids.shape[1]).long()

    @property
    def response_mask(self) -> Tensor:
        """bool [B, T], true for prompt_length <= t < length; all false in a stand-in."""
        return response_mask(self.prompt_lengths, self.lengths, self.ids.shape[1])

    @property
    def valid(self) -> Tensor:
        """bool [B], false for the stand-in."""
        return torch.full_like(self.lengths, not self.empty, dtype=torch.bool)

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on a device."""
        return TokenBatch(self.ids.to(device), self.lengths.to(device), self.prompt_lengths.to(device), self.empty)


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Comparisons, both sides in one batch so that one forward pass scores them."""

    tokens: TokenBatch
    """2B rows: the A sides, then the B sides. `prompt_lengths` equal `lengths`: no token has a loss of its own."""
    p_a: Tensor
    """float [B], target probability that A is better."""
    valid: Tensor
    """bool [B], false for the stand-in of an empty micro-batch."""

    def split(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [2B] of `tokens` -> (scores of A [B], scores of B [B])."""
        pairs = self.p_a.shape[0]
        return scores[:pairs], scores[pairs:]

    def to(self, device: torch.device | str) -> PairBatch:
        """The same batch on a device."""
        return PairBatch(self.tokens.to(device), self.p_a.to(device), self.valid.to(device))


@dataclass(frozen=True, slots=True)
class TrajectoryBatch:
    """Trajectories with every per-token quantity at its token; float32 [B, T], 0 outside `tokens.response_mask`."""

    tokens: TokenBatch
    old_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor

    def to(self, device: torch.device | str) -> TrajectoryBatch:
        """The same batch on a device."""
        return TrajectoryBatch(
            self.tokens.to(device),
            self.old_logprobs.to(device),
            self.old_values.to(device),
            self.advantages.to(device),
            self.returns.to(device),
        )


def pad_sequences(sequences: Sequence[tuple[int, ...]], pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Pad on the right to the longest.

    Args:
        sequences: at least one, none empty.
        pad_id: what fills the rest; it may be a real token, no mask is made from it.

    Returns: ids long [B, T] and lengths long [B].

    Raises: ValueError for no sequence or an empty one.
    """
    lengths = [len(sequence) for sequence in sequences]
    if not lengths or min(lengths) == 0:
        raise ValueError("padding needs at least one sequence and at least one token in each")
    width = max(lengths)
    rows = [list(sequence) + [pad_id] * (width - len(sequence)) for sequence in sequences]
    return torch.tensor(rows, dtype=torch.long), torch.tensor(lengths, dtype=torch.long)


def sequence_batch(sequences: Sequence[TokenSequence]) -> tuple[TokenBatch, Tensor]:
    """A batch for the language loss and its weights, float [B, T].

    `prompt_lengths` is the position of the first token with a weight. Position 0 is never predicted: its weight is 0
    here whatever the sequence says, as in `loss_weight`.
    """
    if not sequences:
        batch = _stand_in()
        return batch, torch.zeros(batch.ids.shape)
    ids, lengths = pad_sequences([sequence.ids for sequence in sequences])
    weights = torch.zeros(ids.shape)
    for row, sequence in enumerate(sequences):
        if len(sequence.weights) != len(sequence.ids):
            raise ValueError(f"a sequence of {len(sequence.ids)} tokens has {len(sequence.weights)} weights")
        weights[row, 1 : len(sequence)] = torch.tensor(sequence.weights[1:])
    starts = [next((t for t, w in enumerate(s.weights) if t > 0 and w != 0), len(s)) for s in sequences]
    return TokenBatch(ids, lengths, torch.tensor(starts)), weights


def loss_weight(sequences: Sequence[TokenSequence]) -> float:
    """Sum of the weights that count: the denominator of the language loss for these sequences."""
    return math.fsum(weight for sequence in sequences for weight in sequence.weights[1:])


def sample_batch(samples: Sequence[Sample]) -> TokenBatch:
    """A batch of prompt + response; `prompt_lengths` where the response begins."""
    if not samples:
        return _stand_in()
    ids, lengths = pad_sequences([sample.prompt_ids + sample.response_ids for sample in samples])
    return TokenBatch(ids, lengths, torch.tensor([len(sample.prompt_ids) for sample in samples]))


def pair_batch(pairs: Sequence[ScoredPair]) -> PairBatch:
    """A batch of comparisons; the stand-in of an empty one has two rows and `valid` false."""
    sides = [pair.ids_a for pair in pairs] + [pair.ids_b for pair in pairs] or [_STAND_IN, _STAND_IN]
    ids, lengths = pad_sequences(sides)
    targets = torch.tensor([pair.p_a for pair in pairs] or [0.5], dtype=torch.float32)
    valid = torch.full(targets.shape, bool(pairs), dtype=torch.bool)
    return PairBatch(TokenBatch(ids, lengths, lengths.clone(), empty=not pairs), targets, valid)


def trajectory_batch(trajectories: Sequence[Trajectory]) -> TrajectoryBatch:
    """A batch for the policy and value losses."""
    tokens = sample_batch(trajectories)
    return TrajectoryBatch(
        tokens,
        old_logprobs=align(tokens, [item.old_logprobs for item in trajectories]),
        old_values=align(tokens, [item.values for item in trajectories]),
        advantages=align(tokens, [item.advantages for item in trajectories]),
        returns=align(tokens, [item.returns for item in trajectories]),
    )


def align(batch: TokenBatch, rows: Sequence[Sequence[float]]) -> Tensor:
    """Lists over response tokens -> float [B, T] with each number at its token, 0 elsewhere.

    Raises: ValueError unless there is one list a real row and one number a response token.
    """
    if len(rows) != len(batch):
        raise ValueError(f"{len(rows)} lists for {len(batch)} rows")
    aligned = torch.zeros(batch.ids.shape, dtype=torch.float32)
    for row, numbers in enumerate(rows):
        start, end = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        if len(numbers) != end - start:
            raise ValueError(f"row {row}: {len(numbers)} numbers for {end - start} response tokens")
        aligned[row, start:end] = torch.tensor(numbers, dtype=torch.float32)
    return aligned


def response_rows(batch: TokenBatch, values: Tensor) -> list[list[float]]:
    """[B, T] -> per real row the numbers of its response tokens: the inverse of `align`."""
    rows: list[list[float]] = []
    for row in range(len(batch)):
        rows.append(values[row, int(batch.prompt_lengths[row]) : int(batch.lengths[row])].tolist())
    return rows


def schedule(items: Sequence[T], ranks: int, micro_batch: int) -> list[tuple[tuple[T, ...], ...]]:
    """Split items over ranks and micro-batches.

    Every rank gets the same number of micro-batches (at least one), each of at most `micro_batch` items; some may be
    empty. Ranks, and the micro-batches of a rank, differ in size by at most one. Reading rank after rank gives the
    items in their order.

    Returns: per rank, its micro-batches.

    Raises: ValueError unless ranks and micro_batch are at least 1.
    """
    if ranks < 1 or micro_batch < 1:
        raise ValueError(f"ranks={ranks} and micro_batch={micro_batch} must be at least 1")
    steps = max(1, math.ceil(len(items) / (ranks * micro_batch)))
    return [tuple(tuple(part) for part in _even_parts(share, steps)) for share in _even_parts(items, ranks)]


def unschedule(results_per_rank: Sequence[Sequence[T]], count: int) -> list[T]:
    """Results of `count` scheduled items, one a item in each rank's order, back in the order of the items.

    Raises: ValueError if there are not exactly `count` results.
    """
    results = [result for rank in results_per_rank for result in rank]
    if len(results) != count:
        sizes = [len(rank) for rank in results_per_rank]
        raise ValueError(f"{count} items were scheduled but the ranks returned {sizes} results")
    return results


@lru_cache(maxsize=8)
def epoch_order(n: int, seed: int, epoch: int) -> tuple[int, ...]:
    """A permutation of 0..n-1 that depends on (seed, epoch) alone."""
    order = list(range(n))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(order)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Optimiser steps that see each of n items once: ceil(n / batch_size)."""
    return math.ceil(n / batch_size)


def step_indices(n: int, batch_size: int, seed: int, step: int) -> tuple[int, ...]:
    """The items of an optimiser step (0-based), a pure function of its number.

    Epochs follow each other, each in its own order. The last batch of an epoch is kept though it may be smaller: every
    item is seen exactly once an epoch, losses divide by the true count, and n < batch_size still trains.

    Raises: ValueError unless n and batch_size are at least 1 and step is not negative.
    """
    if n < 1 or batch_size < 1 or step < 0:
        raise ValueError(f"n={n} and batch_size={batch_size} must be at least 1 and step={step} at least 0")
    epoch, batch = divmod(step, steps_per_epoch(n, batch_size))
    return epoch_order(n, seed, epoch)[batch * batch_size : (batch + 1) * batch_size]


def _stand_in() -> TokenBatch:
    """One row of two tokens, all prompt: no mask has a true entry."""
    ids, lengths = pad_sequences([_STAND_IN])
    return TokenBatch(ids, lengths, lengths.clone(), empty=True)


def _even_parts(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    """Consecutive parts whose sizes differ by at most one; larger and smaller ones are spread evenly."""
    return [items[len(items) * i // parts : len(items) * (i + 1) // parts] for i in range(parts)]
