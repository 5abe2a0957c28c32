"""From scored samples to what is trained on, for some of an iteration's samples: whole groups of one prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from cai_dist.config.ppo import PpoConfig
from cai_dist.experience.mismatch import Distances, distances
from cai_dist.experience.moments import Moments
from cai_dist.experience.rewards import Shaped, shape
from cai_dist.experience.token_weights import Importance, RatioSums, aggregation_weight, importance
from cai_dist.types import KeepRemote, PromptKind, RemoteRow, Trajectory


@dataclass(frozen=True, slots=True)
class TrajectoryRequest:
    """Samples with their answers, all in the order of the samples; those of one prompt lie side by side. Rows on the
    way, what they stand for where the work is done."""

    samples: tuple[Any, ...]
    """Of `Generation`."""
    logprobs: tuple[Any, ...] | None
    """Of the policy, a number a response token; None: the sampler's are used."""
    reference: tuple[Any, ...]
    values: tuple[Any, ...] | None
    """One number more than response tokens; None without a value model."""
    scores: tuple[float, ...]
    """Raw."""
    shaped: tuple[float, ...]
    """As they become rewards."""
    prompts: tuple[tuple[str, PromptKind], ...]
    """Id and kind."""
    coefficient: float
    """Of the KL penalty."""
    version: int
    """Of the trainer's weights."""

    def parts(self, count: int, group: int) -> list[TrajectoryRequest]:
        """At most `count` requests that together are this one, in order; the `group` samples of a prompt stay
        together."""
        size = group * math.ceil(len(self.samples) / (count * group))

        def cut(rows: tuple[Any, ...] | None, start: int) -> Any:
            return None if rows is None else rows[start : start + size]

        return [
            replace(
                self,
                samples=cut(self.samples, start),
                logprobs=cut(self.logprobs, start),
                reference=cut(self.reference, start),
                values=cut(self.values, start),
                scores=cut(self.scores, start),
                shaped=cut(self.shaped, start),
                prompts=cut(self.prompts, start),
            )
            for start in range(0, len(self.samples), size)
        ]

    def rows(self) -> Iterator[RemoteRow[Any]]:
        """As `HasRemoteRows`."""
        for rows in (self.samples, self.logprobs, self.reference, self.values):
            yield from (item for item in rows or () if isinstance(item, RemoteRow))

    def resolve(self, found: Callable[[RemoteRow[Any]], Any]) -> TrajectoryRequest:
        """As `HasRemoteRows`."""

        def fill(rows: tuple[Any, ...] | None) -> Any:
            return None if rows is None else tuple(found(i) if isinstance(i, RemoteRow) else i for i in rows)

        return replace(
            self,
            samples=fill(self.samples),
            logprobs=fill(self.logprobs),
            reference=fill(self.reference),
            values=fill(self.values),
        )


@dataclass(frozen=True, slots=True)
class Sums:
    """Over the response tokens of some samples."""

    tokens: int = 0
    rewards: float = 0.0
    kl: float = 0.0
    """k1 estimate of KL(policy || reference), nats."""
    logprobs: float = 0.0
    advantages: Moments = Moments()
    """Before whitening."""
    returns: Moments = Moments()
    residuals: Moments = Moments()
    """Of return - value."""
    distances: Distances = Distances()
    ratios: RatioSums = RatioSums()

    def merged(self, other: Sums) -> Sums:
        """Over the tokens of both."""
        return Sums(
            self.tokens + other.tokens,
            self.rewards + other.rewards,
            self.kl + other.kl,
            self.logprobs + other.logprobs,
            self.advantages.merged(other.advantages),
            self.returns.merged(other.returns),
            self.residuals.merged(other.residuals),
            self.distances.merged(other.distances),
            self.ratios.merged(other.ratios),
        )


def total(parts: Sequence[Sums]) -> Sums:
    """Over all parts, added in their order: the same numbers to the bit however they came in."""
    return reduce(Sums.merged, parts, Sums())


def make_trajectories(request: TrajectoryRequest, config: PpoConfig) -> KeepRemote[Trajectory]:
    """Rewards, advantages (not whitened yet), returns and weights of every token, to be kept; facts: `Sums`.

    Raises ValueError for groups that are not whole.
    """
    samples, recomputed = request.samples, request.logprobs
    logprobs = [sample.logprobs for sample in samples] if recomputed is None else recomputed
    truncated = [sample.finish == "length" for sample in samples]
    scores = torch.tensor(request.shaped, dtype=torch.float64)
    shaped = shape(logprobs, request.reference, request.values, scores, truncated, config, request.coefficient)
    ratios = importance(logprobs, [sample.logprobs for sample in samples], config.importance_bound)
    made = _trajectories(request, logprobs, shaped, ratios, config)
    return KeepRemote(made, _sums(made, shaped, ratios, request.version))


def _trajectories(
    request: TrajectoryRequest,
    logprobs: Sequence[Sequence[float]],
    shaped: Shaped,
    ratios: Importance,
    config: PpoConfig,
) -> list[Trajectory]:
    """Cut the padded rows back to each response's length."""

    def row(tensor: Tensor | None, number: int) -> tuple[float, ...]:
        return () if tensor is None else tuple(tensor[number, : len(logprobs[number])].tolist())

    def weights(of_sample: Sequence[float]) -> tuple[float, ...]:
        factor = aggregation_weight(len(of_sample), config)
        return tuple([factor * weight for weight in of_sample])

    return [
        Trajectory(
            prompt_ids=sample.prompt_ids,
            response_ids=sample.response_ids,
            old_logprobs=tuple(logprobs[number]),
            ref_logprobs=tuple(request.reference[number]),
            values=() if request.values is None else tuple(request.values[number][:-1]),
            rewards=row(shaped.rewards, number),
            advantages=row(shaped.advantages, number),
            returns=row(shaped.returns, number),
            score=request.scores[number],
            finish=sample.finish,
            weight_version=sample.weight_version,
            sampler_logprobs=sample.logprobs,
            weights=weights(of_sample),
            prompt_id=request.prompts[number][0],
            prompt_kind=request.prompts[number][1],
            versions=sample.versions,
        )
        for number, (sample, of_sample) in enumerate(zip(request.samples, ratios.weights, strict=True))
    ]


def _sums(made: Sequence[Trajectory], shaped: Shaped, ratios: Importance, version: int) -> Sums:
    returns = [number for item in made for number in item.returns]
    values = [number for item in made for number in item.values]
    return Sums(
        tokens=sum(len(item.response_ids) for item in made),
        rewards=math.fsum(number for item in made for number in item.rewards),
        kl=float(shaped.kl.sum()),
        logprobs=math.fsum(number for item in made for number in item.old_logprobs),
        advantages=Moments.of([number for item in made for number in item.advantages]),
        returns=Moments.of(returns),
        residuals=Moments.of([target - value for target, value in zip(returns, values, strict=True)]),
        distances=distances(made, version),
        ratios=ratios.sums(),
    )
