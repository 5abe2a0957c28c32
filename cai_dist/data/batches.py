"""Batches: from lists of token ids to flat tensors without padding.

Sequences stand one after the other, `ids [N]` with `lengths [B]`; every per-token quantity is [N], at the token that it
is about. Where sequences begin and end, and every mask, follows from the lengths, never from the ids.

An empty micro-batch becomes one stand-in sequence of two tokens that belongs to no mask: it runs through the model like
any other, so that no rank misses a collective call, and adds exactly 0 to the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cai_dist.data.device import brought_together, moved_together
from cai_dist.types import ScoredPair, TokenSequence, Trajectory
from cai_dist.types.ragged import Array, Ragged

_STAND_IN = (0, 0)
Batch = TypeVar("Batch", "TokenBatch", "PairBatch", "TrajectoryBatch")


class PromptWithResponse(Protocol):
    """A prompt with its response: `Generation` or `Trajectory`."""

    @property
    def prompt_ids(self) -> NDArray[np.int32]:
        """[P], token ids of the conversation with the answer opened."""
        ...

    @property
    def response_ids(self) -> NDArray[np.int32]:
        """[R], token ids of the answer, as they were sampled."""
        ...

    @property
    def loss_mask(self) -> NDArray[np.bool_]:
        """[R], which of them the model sampled; [0]: all."""
        ...


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """B sequences of N tokens together, one after the other."""

    ids: Tensor
    """long [N]."""
    lengths: Tensor
    """long [B], tokens of prompt and response; their sum is N."""
    prompt_lengths: Tensor
    """long [B]."""
    empty: bool = False
    """The only sequence is the stand-in of an empty micro-batch."""
    loss_mask: Tensor | None = None
    """bool [N], the response tokens that the model sampled, where others spoke between its answers; None: all."""
    origin: TokenBatch | None = None
    """The batch on the host that this one is a copy of; None: it was made here."""

    def __len__(self) -> int:
        """Real sequences: 0 for the stand-in."""
        return 0 if self.empty else self.lengths.shape[0]

    @property
    def on_host(self) -> TokenBatch:
        """This batch where the host reads lengths and masks without waiting for a device."""
        return self if self.origin is None else self.origin

    @property
    def starts(self) -> Tensor:
        """long [B], index of each sequence's first token."""
        return self.lengths.cumsum(0) - self.lengths

    @property
    def last(self) -> Tensor:
        """long [B], index of each sequence's last token."""
        return self.lengths.cumsum(0) - 1

    @property
    def positions(self) -> Tensor:
        """long [N], 0, 1, ... in each sequence."""
        return sequence_positions(self.lengths, self.ids.shape[0])

    @property
    def response_mask(self) -> Tensor:
        """bool [N], true for position >= prompt_length, but for what others said there; all false in a stand-in."""
        after = self.positions >= self._per_token(self.prompt_lengths)
        return after if self.loss_mask is None else after & self.loss_mask

    def to(self, device: torch.device | str) -> TokenBatch:
        """This batch on a device."""
        return replace(_moved(self, device), origin=self.on_host)

    def _per_token(self, per_sequence: Tensor) -> Tensor:
        """[B] -> [N]."""
        return torch.repeat_interleave(per_sequence, self.lengths, output_size=self.ids.shape[0])


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Comparisons, both sides in one batch so that one forward pass scores them."""

    tokens: TokenBatch
    """2B sequences: the A sides, then the B sides. `prompt_lengths` equal `lengths`: no token has a loss of its own."""
    p_a: Tensor
    """float [B], target probability that A is better."""
    valid: Tensor
    """bool [B], false for the stand-in of an empty micro-batch."""

    def split(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [2B] of `tokens` -> (scores of A [B], scores of B [B])."""
        pairs = self.p_a.shape[0]
        return scores[:pairs], scores[pairs:]

    def to(self, device: torch.device | str) -> PairBatch:
        """This batch on a device."""
        return _moved(self, device)


@dataclass(frozen=True, slots=True)
class TrajectoryBatch:
    """Trajectories with every per-token quantity at its token; float32 [N], 0 outside `tokens.response_mask`.

    What an algorithm does not have (an empty list in the trajectory) is 0 everywhere.
    """

    tokens: TokenBatch
    old_logprobs: Tensor
    ref_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    weights: Tensor

    def to(self, device: torch.device | str) -> TrajectoryBatch:
        """This batch on a device."""
        return _moved(self, device)


def sequence_positions(lengths: Tensor, tokens: int) -> Tensor:
    """long [tokens], 0, 1, ... in each of the sequences of these `lengths` (their sum is `tokens`)."""
    starts = lengths.cumsum(0) - lengths
    return torch.arange(tokens, device=lengths.device) - torch.repeat_interleave(starts, lengths, output_size=tokens)


def flatten(sequences: Sequence[Sequence[int] | Array]) -> tuple[Tensor, Tensor]:
    """Token ids one after the other.

    Returns: ids long [N] and lengths long [B].

    Raises: ValueError for no sequence or an empty one.
    """
    if not sequences or min(map(len, sequences)) == 0:
        raise ValueError("a batch needs at least one sequence and at least one token in each")
    rows = Ragged.of(sequences, np.int64)
    return torch.from_numpy(rows.flat), torch.from_numpy(rows.lengths)


def sequence_batch(sequences: Sequence[TokenSequence]) -> tuple[TokenBatch, Tensor]:
    """A batch for the language loss and its weights, float [N].

    `prompt_lengths` is the position of the first token with a weight. Position 0 is never predicted: its weight is 0
    here whatever the sequence says, as in `loss_weight`.
    """
    if not sequences:
        batch = _stand_in()
        return batch, torch.zeros(batch.ids.shape)
    ids, lengths = flatten([sequence.ids for sequence in sequences])
    weights: list[float] = []
    for sequence in sequences:
        if len(sequence.weights) != len(sequence.ids):
            raise ValueError(f"a sequence of {len(sequence.ids)} tokens has {len(sequence.weights)} weights")
        weights += (0.0, *sequence.weights[1:])
    starts = [next((t for t, w in enumerate(s.weights) if t > 0 and w != 0), len(s)) for s in sequences]
    return TokenBatch(ids, lengths, torch.tensor(starts)), torch.tensor(weights)


def loss_weight(sequences: Sequence[TokenSequence]) -> float:
    """Sum of the weights that count: the denominator of the language loss for these sequences."""
    return math.fsum(weight for sequence in sequences for weight in sequence.weights[1:])


def sample_batch(samples: Sequence[PromptWithResponse]) -> TokenBatch:
    """A batch of prompt + response; `prompt_lengths` where the response begins."""
    if not samples:
        return _stand_in()
    rows = Ragged.of([part for sample in samples for part in (sample.prompt_ids, sample.response_ids)], np.int64)
    prompts, responses = torch.from_numpy(rows.lengths).unflatten(0, (-1, 2)).unbind(1)
    return TokenBatch(torch.from_numpy(rows.flat), prompts + responses, prompts, loss_mask=_loss_mask(samples))


def pair_batch(pairs: Sequence[ScoredPair]) -> PairBatch:
    """A batch of comparisons; the stand-in of an empty one has two sequences and `valid` false."""
    sides = [pair.ids_a for pair in pairs] + [pair.ids_b for pair in pairs] or [_STAND_IN, _STAND_IN]
    ids, lengths = flatten(sides)
    targets = torch.tensor([pair.p_a for pair in pairs] or [0.5], dtype=torch.float32)
    valid = torch.full(targets.shape, bool(pairs), dtype=torch.bool)
    return PairBatch(TokenBatch(ids, lengths, lengths.clone(), empty=not pairs), targets, valid)


def trajectory_batch(trajectories: Sequence[Trajectory], mean: float = 0.0, deviation: float = 1.0) -> TrajectoryBatch:
    """A batch for the policy and value losses. `mean`, `deviation`: of the advantages of the whole iteration, which
    become (advantage - mean) / deviation, computed in float64."""
    tokens = sample_batch(trajectories)
    mask = tokens.response_mask.numpy()

    def aligned(rows: list[Array]) -> Tensor:
        if not any(map(len, rows)):
            return torch.zeros(tokens.ids.shape, dtype=torch.float32)
        return align(tokens, rows, mask)

    advantages = Ragged.of([item.advantages for item in trajectories], np.float64)
    return TrajectoryBatch(
        tokens,
        old_logprobs=aligned([item.old_logprobs for item in trajectories]),
        ref_logprobs=aligned([item.ref_logprobs for item in trajectories]),
        old_values=aligned([item.values for item in trajectories]),
        advantages=align(tokens, advantages.like((advantages.flat - mean) / deviation), mask),
        returns=aligned([item.returns for item in trajectories]),
        weights=aligned([item.weights for item in trajectories]),
    )


def align(
    batch: TokenBatch, rows: Ragged | Sequence[Sequence[float] | Array], mask: NDArray[np.bool_] | None = None
) -> Tensor:
    """Rows over response tokens -> float32 [N] with each number at its token, 0 elsewhere. `mask`: bool [N], of the
    response tokens, where it is known.

    Raises: ValueError unless there is one row a real sequence and one number a response token.
    """
    if len(rows) != len(batch):
        raise ValueError(f"{len(rows)} lists for {len(batch)} sequences")
    ragged = Ragged.of(rows, np.float32)
    wanted = _response_lengths(batch)
    for row in np.flatnonzero(ragged.lengths != wanted)[:1]:
        raise ValueError(f"sequence {row}: {ragged.lengths[row]} numbers for {wanted[row]} response tokens")
    flat = np.zeros(batch.ids.shape, np.float32)
    flat[batch.response_mask.cpu().numpy() if mask is None else mask] = ragged.flat
    return torch.from_numpy(flat)


def response_rows(batch: TokenBatch, values: Tensor) -> Ragged:
    """[N] -> float32, per real sequence the numbers of its response tokens: the inverse of `align`."""
    return all_response_rows([(batch, values)])


def all_response_rows(parts: Sequence[tuple[TokenBatch, Tensor]]) -> Ragged:
    """The rows of `response_rows` of several batches, one after the other: the host waits once for all of them."""
    numbers = brought_together([values.float() for _, values in parts])
    rows = [
        Ragged(flat.numpy()[batch.on_host.response_mask.cpu().numpy()], _response_lengths(batch))
        for (batch, _), flat in zip(parts, numbers, strict=True)
    ]
    return Ragged.joined(rows, np.float32)


def _response_lengths(batch: TokenBatch) -> NDArray[np.int64]:
    """[B] of the real sequences."""
    batch = batch.on_host
    found = batch.lengths - batch.prompt_lengths
    if batch.loss_mask is not None:
        found = torch.diff(batch.response_mask.cumsum(0)[batch.last], prepend=found.new_zeros(1))
    counted: NDArray[np.int64] = found[: len(batch)].cpu().numpy()
    return counted


def _loss_mask(samples: Sequence[PromptWithResponse]) -> Tensor | None:
    """bool [N], true at what the models sampled and in prompts; None where nobody else spoke."""
    if not any(len(sample.loss_mask) for sample in samples):
        return None
    parts = []
    for sample in samples:
        mask = sample.loss_mask
        parts += [np.ones(len(sample.prompt_ids), bool), mask if len(mask) else np.ones(len(sample.response_ids), bool)]
    return torch.from_numpy(np.concatenate(parts))


def _stand_in() -> TokenBatch:
    """One sequence of two tokens, all prompt: no mask has a true entry."""
    ids, lengths = flatten([_STAND_IN])
    return TokenBatch(ids, lengths, lengths.clone(), empty=True)


def _moved(batch: Batch, device: torch.device | str) -> Batch:
    """Every tensor of a batch (and of a batch in it) on `device`, in one copy."""
    return _with(batch, iter(moved_together(list(_tensors(batch)), device)))


def _tensors(batch: Any) -> Iterator[Tensor]:
    """Every tensor of a batch and of the batch of tokens in it."""
    for field in fields(batch):
        value = getattr(batch, field.name)
        if field.name == "tokens":
            yield from _tensors(value)
        elif isinstance(value, Tensor):
            yield value


def _with(batch: Batch, tensors: Iterator[Tensor]) -> Batch:
    """The batch with other tensors, in the order of `_tensors`."""
    changed: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if field.name == "tokens":
            changed["tokens"] = replace(_with(value, tensors), origin=value.on_host)
        elif isinstance(value, Tensor):
            changed[field.name] = next(tensors)
    return replace(batch, **changed)
