"""Asking reference, policy, value and reward about samples: all at once, or part by part while others are generated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cai_dist.config.ppo import PpoConfig
from cai_dist.coordinator.protocols import Pending, PendingParts, PpoRoles, Rows
from cai_dist.coordinator.sampling import check_samples
from cai_dist.errors import CaiError
from cai_dist.types import Sample


@dataclass(frozen=True, slots=True)
class Scored:
    """Answers of the scoring roles, in the order of the samples; all but the scores stay with those who gave them."""

    logprobs: Rows | None
    """Of the policy; None: those of the sampler are used."""
    reference: Rows
    values: Rows | None
    """None without a value model."""
    scores: Sequence[float]


@dataclass(frozen=True, slots=True)
class Question:
    """The four roles at work on some samples."""

    policy: Pending[Rows] | None
    reference: Pending[Rows]
    values: Pending[Rows] | None
    scores: Pending[list[float]]

    def answer(self) -> Scored:
        """Wait for each."""
        return Scored(
            logprobs=None if self.policy is None else self.policy.result(),
            reference=self.reference.result(),
            values=None if self.values is None else self.values.result(),
            scores=self.scores.result(),
        )


def ask(roles: PpoRoles, samples: Sequence[Sample], config: PpoConfig) -> Question:
    """Set all to work. The policy is left out where the sampler's log-probabilities are used, the value model where the
    algorithm has none."""
    temperature = config.sampling.temperature
    recompute = config.old_logprobs == "trainer"
    reference = roles.reference_logprobs(samples, temperature)
    policy = roles.policy_logprobs(samples, temperature) if recompute else None
    values = roles.values(samples) if config.defaults.needs_value else None
    return Question(policy, reference, values, roles.scores(samples))


def score(roles: PpoRoles, samples: Sequence[Sample], config: PpoConfig) -> Scored:
    """Ask about samples that are all there, in the chunks that `score_stream` asks about: the same numbers to the bit.

    Raises CaiError for an answer that does not fit, WorkerError, WorkerTimeout.
    """
    size = chunk_size(config)
    questions = [ask(roles, samples[start : start + size], config) for start in range(0, len(samples), size)]
    scored = _joined([question.answer() for question in questions])
    _check(scored, samples)
    return scored


def score_stream(
    roles: PpoRoles, under_way: PendingParts, prompts: Sequence[tuple[int, ...]], config: PpoConfig, policy: int
) -> tuple[list[Sample], Scored]:
    """Ask about each chunk of `chunk_size` samples as soon as its last one is there.

    Which samples make a chunk follows from the settings alone, not from the order in which they finish: so the numbers
    do not depend on it, and they are those of `score`.

    Args:
        prompts: token ids of the prompt of each sample.
        policy: version of the policy's weights, which must be that of the samples.

    Raises: what `check_samples` and `score` raise.
    """
    size = chunk_size(config)
    starts = range(0, len(prompts), size)
    missing = {start: min(size, len(prompts) - start) for start in starts}
    found: dict[int, Sample] = {}
    questions: dict[int, Question] = {}
    for first, part in under_way.parts():
        check_samples(part, prompts[first : first + len(part)], policy, first=first)
        for place, sample in enumerate(part, first):
            start = place - place % size
            found[place] = sample
            missing[start] -= 1
            if missing[start] == 0:
                chunk = [found[i] for i in range(start, min(start + size, len(prompts)))]
                questions[start] = ask(roles, chunk, config)
    samples = [found[place] for place in sorted(found)]
    check_samples(samples, prompts, policy)
    scored = _joined([questions[start].answer() for start in starts])
    _check(scored, samples)
    return samples, scored


def chunk_size(config: PpoConfig) -> int:
    """Samples that are scored together: as many as fill one micro-batch of every policy rank. Smaller
    chunks would pay for more passes, larger ones would wait longer."""
    return config.policy.ranks * config.policy.micro_batch


def _joined(parts: Sequence[Scored]) -> Scored:
    def rows(of_parts: Sequence[Rows | None]) -> Rows | None:
        found = [row for part in of_parts for row in part or ()]
        return found if of_parts[0] is not None else None

    return Scored(
        logprobs=rows([part.logprobs for part in parts]),
        reference=[row for part in parts for row in part.reference],
        values=rows([part.values for part in parts]),
        scores=[score for part in parts for score in part.scores],
    )


def _check(scored: Scored, samples: Sequence[Sample]) -> None:
    """An answer for every sample, and a score that is finite. Numbers of tokens have been checked where they are."""
    for role, rows in (("policy", scored.logprobs), ("reference", scored.reference), ("value", scored.values)):
        if rows is not None and len(rows) != len(samples):
            raise CaiError(f"{role}: its numbers do not match the response tokens of the samples")
    if len(scored.scores) != len(samples):
        raise CaiError(f"reward: {len(scored.scores)} scores for {len(samples)} samples")
    for number, score in enumerate(scored.scores):
        if not math.isfinite(score):
            raise CaiError(f"reward: the score of sample {number} is not finite")
