"""From scored samples to what is trained on, for some of an iteration's samples: whole groups of one prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cai_dist.config.ppo import PpoConfig
from cai_dist.experience.mismatch import Distances, distances
from cai_dist.experience.moments import Moments
from cai_dist.experience.rewards import Shaped, shape
from cai_dist.experience.token_weights import Importance, RatioSums, aggregation_weight, importance
from cai_dist.types import KeepRemote, PromptKind, RemoteRow, Trajectory
from cai_dist.types.ragged import Array, Packed, Ragged


@dataclass(frozen=True, slots=True)
class TrajectoryRequest:
    """Samples with their answers, all in the order of the samples; those of one prompt lie side by side. Rows on the
    way, what they stand for where the work is done."""

    samples: tuple[Any, ...]
    """`Generation` of each sample."""
    logprobs: tuple[Any, ...] | None
    """The policy's, a number a response token; None: the sampler's are used."""
    reference: tuple[Any, ...]
    values: tuple[Any, ...] | None
    """One number more than response tokens; None without a value model."""
    scores: tuple[float, ...]
    """Raw."""
    shaped: tuple[float, ...]
    """Scores as they become rewards."""
    prompts: tuple[tuple[str, PromptKind], ...]
    """Id and kind."""
    coefficient: float
    """Coefficient of the KL penalty."""
    version: int
    """Version of the trainer's weights."""

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
        """Every row of the request (`HasRemoteRows`)."""
        for rows in (self.samples, self.logprobs, self.reference, self.values):
            yield from (item for item in rows or () if isinstance(item, RemoteRow))

    def resolve(self, found: Callable[[RemoteRow[Any]], Any]) -> TrajectoryRequest:
        """This request with what the rows stand for (`HasRemoteRows`)."""

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
    """Sums over the response tokens of some samples."""

    tokens: int = 0
    rewards: float = 0.0
    kl: float = 0.0
    """k1 estimate of KL(policy || reference), nats."""
    logprobs: float = 0.0
    advantages: Moments = Moments()
    """Before whitening."""
    returns: Moments = Moments()
    residuals: Moments = Moments()
    """Moments of return - value."""
    distances: Distances = Distances()
    ratios: RatioSums = RatioSums()

    def merged(self, other: Sums) -> Sums:
        """Sums over the tokens of both."""
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
    found = _Numbers.of(request)
    truncated = [sample.finish == "length" for sample in request.samples]
    scores = torch.tensor(request.shaped, dtype=torch.float64)
    shaped = shape(found.logprobs, found.reference, found.values, scores, truncated, config, request.coefficient)
    ratios = importance(found.logprobs.flat, found.sampler.flat, config.importance_bound)
    return KeepRemote(_packed(request, found, shaped, ratios, config), _sums(found, shaped, ratios, request.version))


@dataclass(frozen=True, slots=True, eq=False)
class _Numbers:
    """What is given, one row a sample and one number a response token."""

    sampler: Ragged
    logprobs: Ragged
    """The trainer's, or the sampler's where those are used."""
    reference: Ragged
    values: Ragged | None
    """With the value after the last token."""
    versions: Ragged

    @classmethod
    def of(cls, request: TrajectoryRequest) -> _Numbers:
        sampler = Ragged.of([sample.logprobs for sample in request.samples], np.float32)
        return cls(
            sampler,
            sampler if request.logprobs is None else Ragged.of(request.logprobs, np.float32),
            Ragged.of(request.reference, np.float32),
            None if request.values is None else Ragged.of(request.values, np.float32),
            Ragged.of([sample.token_versions for sample in request.samples], np.int32),
        )


def _packed(
    request: TrajectoryRequest, found: _Numbers, shaped: Shaped, ratios: Importance, config: PpoConfig
) -> Packed[Trajectory]:
    """Column by column; what was computed in float64 is rounded to float32 here, which the losses compute in."""
    samples, lengths = request.samples, found.logprobs.lengths
    none = Ragged(np.zeros(0, np.float32), np.zeros(len(samples), np.int64))

    def rounded(numbers: Array) -> Ragged:
        return found.logprobs.like(numbers.astype(np.float32))

    return Packed(
        Trajectory,
        {
            "prompt_ids": Ragged.of([sample.prompt_ids for sample in samples], np.int32),
            "response_ids": Ragged.of([sample.response_ids for sample in samples], np.int32),
            "old_logprobs": found.logprobs,
            "ref_logprobs": found.reference,
            "values": none if found.values is None else found.values.without_last()[0],
            "rewards": rounded(_flat(shaped.rewards, shaped)),
            "advantages": rounded(_flat(shaped.advantages, shaped)),
            "returns": none if shaped.returns is None else rounded(_flat(shaped.returns, shaped)),
            "score": request.scores,
            "finish": [sample.finish for sample in samples],
            "weight_version": [sample.weight_version for sample in samples],
            "sampler_logprobs": found.sampler,
            "weights": rounded(ratios.weights * np.repeat(aggregation_weight(lengths, config), lengths)),
            "prompt_id": [prompt_id for prompt_id, _ in request.prompts],
            "prompt_kind": [kind for _, kind in request.prompts],
            "versions": Ragged.of([sample.versions for sample in samples], np.int32),
            "loss_mask": Ragged.of([sample.loss_mask for sample in samples], np.bool_),
        },
    )


def _flat(padded: Tensor, shaped: Shaped) -> Array:
    """[B, T] -> [N], the numbers of the response tokens."""
    return padded.numpy()[shaped.mask.numpy()]


def _sums(found: _Numbers, shaped: Shaped, ratios: Importance, version: int) -> Sums:
    returns, residuals = Moments(), Moments()
    if shaped.returns is not None and found.values is not None:
        targets = _flat(shaped.returns, shaped)
        returns, residuals = Moments.of(targets), Moments.of(targets - found.values.without_last()[0].flat)
    return Sums(
        tokens=len(found.logprobs.flat),
        rewards=float(shaped.rewards.sum()),
        kl=float(shaped.kl.sum()),
        logprobs=float(found.logprobs.flat.sum(dtype=np.float64)),
        advantages=Moments.of(_flat(shaped.advantages, shaped)),
        returns=returns,
        residuals=residuals,
        distances=distances(found.logprobs.flat, found.sampler.flat, found.versions.flat, version),
        ratios=ratios.sums(),
    )
