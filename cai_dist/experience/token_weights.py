"""What a token counts for in the policy's loss: aggregation, and the distance between sampler and trainer.

The loss is 1/D sum_t w_t (...), with w_t = aggregation weight x importance weight and D the denominator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cai_dist.config.ppo import PpoConfig
from cai_dist.types import TrajectoryRef

_MAX_LOG_RATIO = 20.0  # exp() of more is no longer a weight, and would soon overflow


def aggregation_weight(lengths: NDArray[np.int64], config: PpoConfig) -> NDArray[np.float64]:
    """[B] weight of each token of responses of `lengths` [B] tokens: 1, or 1 / length where every sequence counts the
    same."""
    return 1.0 / lengths if config.aggregation == "sequence" else np.ones(len(lengths))


def denominator(batch: Sequence[TrajectoryRef], config: PpoConfig) -> float:
    """D of one mini-batch over all ranks: response tokens, sequences, or `max_new_tokens` for each sequence."""
    if config.aggregation == "token":
        return float(sum(item.response_tokens for item in batch))
    if config.aggregation == "sequence":
        return float(len(batch))
    return float(len(batch) * config.sampling.max_new_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class Importance:
    """p_trainer / p_sampler of every sampled token: 1 where the two agree."""

    ratios: NDArray[np.float64]
    """[N]; not capped."""
    cap: float | None
    """None: tokens are not weighted."""

    @property
    def weights(self) -> NDArray[np.float64]:
        """[N] min(ratio, cap) of every token (truncated importance sampling; Ionides 2008); 1 where there is no
        cap."""
        return np.ones(len(self.ratios)) if self.cap is None else np.minimum(self.ratios, self.cap)

    def sums(self) -> RatioSums:
        """Sums over all tokens."""
        ratios = self.ratios
        used = ratios if self.cap is None else self.weights
        return RatioSums(
            len(ratios),
            total=float(ratios.sum()),
            largest=float(ratios.max(initial=0.0)),
            capped=0 if self.cap is None else int((ratios > self.cap).sum()),
            used=float(used.sum()),
            used_squares=float((used**2).sum()),
        )


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
        """Sums over the tokens of both."""
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


def importance(trainer: NDArray[np.float32], sampler: NDArray[np.float32], cap: float | None) -> Importance:
    """Ratios from log-probabilities (nats) of [N] tokens each; without gradient, they are numbers."""
    log_ratio = trainer.astype(np.float64) - sampler
    return Importance(np.exp(np.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)), cap)
