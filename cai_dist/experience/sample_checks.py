"""Answers of workers that stay with them: checked there, since nobody else sees their numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cai_dist.errors import CaiError
from cai_dist.types import Generation, KeepRemote, RemoteRow, SampleRef
from cai_dist.types.ragged import Array, Packed, Ragged
from cai_dist.types.samples import Finish

Fact = tuple[int, int, Finish, int, int, int, int]
"""Facts of one sample: the fields of `SampleRef` after the row."""


def kept_samples(
    prompts: Sequence[tuple[int, ...]], samples: Sequence[Generation], first: int = 0
) -> KeepRemote[Generation]:
    """The samples, to be kept, with the facts of each (`samples_of`).

    Args:
        prompts: token ids of the prompt of each sample.
        first: number of the first sample, for messages.

    Raises: CaiError (of other prompts, without a token, or with numbers that do not match its tokens).
    """
    packed = Packed.of(Generation, samples)
    if Ragged.of(prompts, np.int32) != packed.rows("prompt_ids"):
        raise CaiError("rollout: the samples do not belong to the prompts that were sent, or not in their order")
    lengths, of_versions = packed.rows("response_ids").lengths, packed.rows("versions").lengths
    counts = lengths
    if len(packed.rows("loss_mask").flat):
        _check_masks(packed, first)
        counts = np.array([sample.model_tokens for sample in packed], np.int64)
    for place in np.flatnonzero(lengths == 0)[:1]:
        raise CaiError(f"rollout: sample {first + place} has no token; a response holds at least its stop token")
    for place in np.flatnonzero((of_versions != 0) & (of_versions != counts))[:1]:
        raise CaiError(f"rollout: sample {first + place} does not say of which weights each of its tokens is")
    _check("rollout", samples, packed.rows("logprobs"), first)
    return KeepRemote(packed, [_facts(sample) for sample in packed])


def _check_masks(samples: Packed[Generation], first: int) -> None:
    """A mask is empty, or has a mark a token, of which the first and the last are the model's. Raises CaiError."""
    for number, sample in enumerate(samples, first):
        mask = sample.loss_mask
        if len(mask) and not (len(mask) == len(sample.response_ids) and mask[0] and mask[-1]):
            raise CaiError(f"rollout: the loss mask of sample {number} does not match its tokens")


def _facts(sample: Generation) -> Fact:
    oldest = newest = sample.weight_version
    if len(sample.versions):
        oldest, newest = min(oldest, int(sample.versions.min())), max(newest, int(sample.versions.max()))
    ours = sample.model_tokens
    others = len(sample.response_ids) - ours
    answers = sum(1 for by_model, _ in sample.turns() if by_model) if others else 1
    return len(sample.prompt_ids), ours, sample.finish, newest, oldest, others, answers


def samples_of(rows: Sequence[RemoteRow[Generation]], facts: Sequence[Fact]) -> list[SampleRef]:
    """References of samples, from the facts of `kept_samples`."""
    return [SampleRef(row, *of_row) for row, of_row in zip(rows, facts, strict=True)]


def kept_rows(
    role: str, samples: Sequence[Generation], rows: Ragged | Sequence[Sequence[float]], more: int = 0
) -> KeepRemote[Array]:
    """Numbers (float32) of every token of the model in each sample (and `more`), to be kept. Raises CaiError unless
    they are that, and finite: one NaN would poison the whole batch."""
    ragged = Ragged.of(rows, np.float32)
    _check(role, samples, ragged, 0, more)
    return KeepRemote(ragged)


def _check(role: str, samples: Sequence[Generation], rows: Ragged, first: int, more: int = 0) -> None:
    if rows.lengths.tolist() != [sample.model_tokens + more for sample in samples]:
        raise CaiError(f"{role}: its numbers do not match the response tokens of the samples")
    bad = np.flatnonzero(~np.isfinite(rows.flat))
    if len(bad):
        number = first + int(np.searchsorted(rows.offsets, bad[0], side="right")) - 1
        raise CaiError(f"{role}: a number of sample {number} is not finite")
