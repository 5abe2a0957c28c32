"""Answers of workers that stay with them: checked there, since nobody else sees their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cai_dist.errors import CaiError
from cai_dist.types import Generation, KeepRemote, RemoteRow, SampleRef


def kept_samples(
    prompts: Sequence[tuple[int, ...]], samples: Sequence[Generation], first: int = 0
) -> KeepRemote[Generation]:
    """The samples, to be kept, with the facts of each (`samples_of`).

    Args:
        prompts: token ids of the prompt of each sample.
        first: number of the first sample, for messages.

    Raises: CaiError (of other prompts, without a token, or with numbers that do not match its tokens).
    """
    if [sample.prompt_ids for sample in samples] != list(prompts):
        raise CaiError("rollout: the samples do not belong to the prompts that were sent, or not in their order")
    for number, sample in enumerate(samples, first):
        if not sample.response_ids:
            raise CaiError(f"rollout: sample {number} has no token; a response holds at least its stop token")
        if len(sample.token_versions) != len(sample.response_ids):
            raise CaiError(f"rollout: sample {number} does not say of which weights each of its tokens is")
    _check("rollout", samples, [sample.logprobs for sample in samples], first)
    return KeepRemote(samples, [_facts(sample) for sample in samples])


def _facts(sample: Generation) -> tuple[int, int, str, int, int]:
    """The fields of `SampleRef` after the row."""
    version = sample.weight_version
    oldest = min(version, *sample.versions) if sample.versions else version
    newest = max(version, *sample.versions) if sample.versions else version
    return len(sample.prompt_ids), len(sample.response_ids), sample.finish, newest, oldest


def samples_of(
    rows: Sequence[RemoteRow[Generation]], facts: Sequence[tuple[int, int, str, int, int]]
) -> list[SampleRef]:
    """From the facts of `kept_samples`."""
    return [SampleRef(row, *of_row) for row, of_row in zip(rows, facts, strict=True)]  # type: ignore[arg-type]


def kept_rows(
    role: str, samples: Sequence[Generation], rows: Sequence[Sequence[float]], more: int = 0
) -> KeepRemote[Sequence[float]]:
    """Numbers of every response token (and `more`) of each sample, to be kept. Raises CaiError unless they are that,
    and finite: one NaN would poison the whole batch."""
    _check(role, samples, rows, 0, more)
    return KeepRemote(rows)


def _check(
    role: str, samples: Sequence[Generation], rows: Sequence[Sequence[float]], first: int, more: int = 0
) -> None:
    if [len(row) for row in rows] != [len(sample.response_ids) + more for sample in samples]:
        raise CaiError(f"{role}: its numbers do not match the response tokens of the samples")
    for number, row in enumerate(rows, first):
        if not all(map(math.isfinite, row)):
            raise CaiError(f"{role}: a number of sample {number} is not finite")
