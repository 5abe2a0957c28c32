"""What a token counts for in the policy's loss: aggregation, and the distance between sampler and trainer.

The loss is 1/D sum_t w_t (...), with w_t = aggregation weight x importance weight and D the denominator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cai_dist.config.ppo import PpoConfig
from cai_dist.types import TrajectoryRef

_MAX_LOG_RATIO = 20.0  # exp() of more is no longer a weight, and would soon overflow


def aggregation_weight(length: int, config: PpoConfig) -> float:
    """Weight of each token of a response of `length` tokens: 1, or 1 / length where every sequence counts the same."""
    return 1.0 / length if config.aggregation == "sequence" else 1.0


def denominator(batch: Sequence[TrajectoryRef], config: PpoConfig) -> float:
    """D of one mini-batch over all ranks: response tokens, sequences, or `max_new_tokens` for each sequence."""
    if config.aggregation == "token":
        return float(sum(item.response_tokens for item in batch))
    if config.aggregation == "sequence":
        return float(len(batch))
    return float(len(batch) * config.sampling.max_new_tokens)


@dataclass(frozen=True, slots=True)
class Importance:
    """p_trainer / p_sampler of every sampled token: 1 where the two agree."""

    ratios: tuple[tuple[float, ...], ...]
    """Per sample, one number a response token; not capped."""
    cap: float | None
    """None: tokens are not weighted."""

    @property
    def weights(self) -> tuple[tuple[float, ...], ...]:
        """min(ratio, cap) of every token (truncated importance sampling; Ionides 2008); 1 where there is no cap."""
        if self.cap is None:
            return tuple((1.0,) * len(row) for row in self.ratios)
        cap = self.cap
        return tuple(tuple(min(ratio, cap) for ratio in row) for row in self.ratios)

    def sums(self) -> RatioSums:
        """Over all tokens."""
        ratios = [ratio for row in self.ratios for ratio in row]
        used = ratios if self.cap is None else [ratio for row in self.weights for ratio in row]
        capped = 0 if self.cap is None else sum(ratio > self.cap for ratio in ratios)
        squares = math.fsum(w * w for w in used)
        return RatioSums(len(ratios), math.fsum(ratios), max(ratios, default=0.0), capped, math.fsum(used), squares)


@dataclass(frozen=True, slots=True)
class RatioSums:
    """Sums over tokens of their importance ratios, and of the ratios as they weigh (`used`: capped if there is a
    cap)."""

    tokens: int = 0
    total: float = 0.0
    largest: float = 0.0
    capped: int = 0
    used: float = 0.0
    used_squares: float = 0.0

    def merged(self, other: RatioSums) -> RatioSums:
        """Over the tokens of both."""
        return RatioSums(
            self.tokens + other.tokens,
            self.total + other.total,
            max(self.largest, other.largest),
            self.capped + other.capped,
            self.used + other.used,
            self.used_squares + other.used_squares,
        )

    def metrics(self) -> dict[str, float]:
        """Mean and largest ratio, the share of tokens beyond the cap, and the effective sample size of the ratios as
        they would weigh: (sum w)^2 / (n sum w^2), 1 where all are equal."""
        return {
            "importance_mean": self.total / self.tokens,
            "importance_max": self.largest,
            "importance_capped": self.capped / self.tokens,
            "importance_ess": self.used**2 / (self.tokens * self.used_squares),
        }


def importance(trainer: Sequence[Sequence[float]], sampler: Sequence[Sequence[float]], cap: float | None) -> Importance:
    """Ratios from log-probabilities (nats), per sample one a response token; without gradient, they are numbers."""
    return Importance(
        tuple(
            tuple(
                math.exp(min(max(ours - theirs, -_MAX_LOG_RATIO), _MAX_LOG_RATIO))
                for ours, theirs in zip(ours_row, theirs_row, strict=True)
            )
            for ours_row, theirs_row in zip(trainer, sampler, strict=True)
        ),
        cap,
    )
