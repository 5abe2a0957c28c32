"""Asking reference, policy, value and reward about samples: all at once, or part by part while others are generated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cai_dist.config.ppo import PpoConfig
from cai_dist.coordinator.protocols import Pending, PendingParts, PpoRoles, RemoteRows
from cai_dist.coordinator.sample_requests import check_samples
from cai_dist.errors import CaiError
from cai_dist.types import SampleRef


@dataclass(frozen=True, slots=True)
class Scored:
    """Answers of the scoring roles, in the order of the samples; all but the scores stay with those who gave them."""

    logprobs: RemoteRows | None
    """Of the policy; None: those of the sampler are used."""
    reference: RemoteRows
    values: RemoteRows | None
    """None without a value model."""
    scores: Sequence[float]


@dataclass(frozen=True, slots=True)
class FrozenScores:
    """The roles that do not learn at work on some samples: when they are asked makes no difference."""

    reference: Pending[RemoteRows]
    scores: Pending[list[float]]

    @classmethod
    def ask(cls, roles: PpoRoles, samples: Sequence[SampleRef], config: PpoConfig) -> FrozenScores:
        """Set both to work."""
        return cls(roles.reference_logprobs(samples, config.sampling.temperature), roles.scores(samples))


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """The four roles at work on some samples."""

    fixed: FrozenScores
    policy: Pending[RemoteRows] | None
    values: Pending[RemoteRows] | None

    def answer(self) -> Scored:
        """Wait for each."""
        return Scored(
            logprobs=None if self.policy is None else self.policy.result(),
            reference=self.fixed.reference.result(),
            values=None if self.values is None else self.values.result(),
            scores=self.fixed.scores.result(),
        )


def ask(
    roles: PpoRoles, samples: Sequence[SampleRef], config: PpoConfig, fixed: FrozenScores | None = None
) -> ScoreRequest:
    """Set all to work; `fixed`: those that have been. The policy is left out where the sampler's log-probabilities are
    used, the value model where the algorithm has none."""
    recompute = config.old_logprobs == "trainer"
    policy = roles.policy_logprobs(samples, config.sampling.temperature) if recompute else None
    values = roles.values(samples) if config.defaults.needs_value else None
    return ScoreRequest(fixed or FrozenScores.ask(roles, samples, config), policy, values)


def ask_all(
    roles: PpoRoles, samples: Sequence[SampleRef], config: PpoConfig, fixed: Mapping[int, FrozenScores] | None = None
) -> list[ScoreRequest]:
    """Ask about samples that are all there, in the chunks that `score_stream` asks about: the same numbers to the bit.

    `fixed`: by the place of a chunk's first sample, who has been asked about it.
    """
    size, fixed = chunk_size(config), fixed or {}
    starts = range(0, len(samples), size)
    return [ask(roles, samples[start : start + size], config, fixed.get(start)) for start in starts]


def answers(questions: Sequence[ScoreRequest], samples: Sequence[SampleRef]) -> Scored:
    """What is said of the samples, by chunk. Raises CaiError for an answer that does not fit, WorkerError,
    WorkerTimeout."""
    scored = _joined([question.answer() for question in questions])
    _check(scored, samples)
    return scored


class Chunks:
    """Samples on their way, put together to the chunks that are scored together.

    Which samples make a chunk follows from the settings alone, not from the order in which they finish: so numbers do
    not depend on it.

    Args:
        prompts: token ids of the prompt of each sample.
        policy: version of the weights that the samples must be of.
    """

    def __init__(self, prompts: Sequence[tuple[int, ...]], config: PpoConfig, policy: int) -> None:
        self._prompts, self._policy, self._size = prompts, policy, chunk_size(config)
        self.starts = range(0, len(prompts), self._size)
        self._missing = {start: min(self._size, len(prompts) - start) for start in self.starts}
        self._found: dict[int, SampleRef] = {}

    def add(self, first: int, part: Sequence[SampleRef]) -> Iterator[tuple[int, list[SampleRef]]]:
        """(place of the first sample, samples) of each chunk that `part`, whose first sample has the place `first`,
        makes whole. Raises what `check_samples` raises."""
        check_samples(part, self._prompts[first : first + len(part)], self._policy, first=first)
        for place, sample in enumerate(part, first):
            start = place - place % self._size
            self._found[place] = sample
            self._missing[start] -= 1
            if self._missing[start] == 0:
                yield start, [self._found[i] for i in range(start, min(start + self._size, len(self._prompts)))]

    def samples(self) -> list[SampleRef]:
        """All of them. Raises what `check_samples` raises, where one has not come."""
        samples = [self._found[place] for place in sorted(self._found)]
        check_samples(samples, self._prompts, self._policy)
        return samples


def score_stream(
    roles: PpoRoles, under_way: PendingParts, prompts: Sequence[tuple[int, ...]], config: PpoConfig, policy: int
) -> tuple[list[SampleRef], Scored]:
    """Ask about each chunk as soon as its last sample is there.

    `prompts`, `policy`: as for `Chunks`. Raises what `check_samples` and `answers` raise.
    """
    chunks = Chunks(prompts, config, policy)
    questions: dict[int, ScoreRequest] = {}
    for first, part in under_way.parts():
        for start, chunk in chunks.add(first, part):
            questions[start] = ask(roles, chunk, config)
    samples = chunks.samples()
    return samples, answers([questions[start] for start in chunks.starts], samples)


def chunk_size(config: PpoConfig) -> int:
    """Samples that are scored together: as many as fill one micro-batch of every policy rank (of every group that
    computes them together). Smaller chunks would pay for more passes, larger ones would wait longer."""
    return config.policy.data_ranks * config.policy.micro_batch


def _joined(parts: Sequence[Scored]) -> Scored:
    def rows(of_parts: Sequence[RemoteRows | None]) -> RemoteRows | None:
        found = [row for part in of_parts for row in part or ()]
        return found if of_parts[0] is not None else None

    return Scored(
        logprobs=rows([part.logprobs for part in parts]),
        reference=[row for part in parts for row in part.reference],
        values=rows([part.values for part in parts]),
        scores=[score for part in parts for score in part.scores],
    )


def _check(scored: Scored, samples: Sequence[SampleRef]) -> None:
    """An answer for every sample, and a score that is finite. Numbers of tokens have been checked where they are."""
    for role, rows in (("policy", scored.logprobs), ("reference", scored.reference), ("value", scored.values)):
        if rows is not None and len(rows) != len(samples):
            raise CaiError(f"{role}: its numbers do not match the response tokens of the samples")
    if len(scored.scores) != len(samples):
        raise CaiError(f"reward: {len(scored.scores)} scores for {len(samples)} samples")
    for number, score in enumerate(scored.scores):
        if not math.isfinite(score):
            raise CaiError(f"reward: the score of sample {number} is not finite")
