"""How far the sampler's log-probabilities are from the trainer's: what two programs make of the same weights
(mismatch), and what the weights have moved since (off-policy)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MAX_LOG_RATIO = 20.0  # exp() of more would drown every other token


@dataclass(frozen=True, slots=True)
class Gaps:
    """Sums over tokens of d = log p_trainer - log p_sampler: of |d|, the largest |d|, and of exp(d) - 1 - d."""

    tokens: int = 0
    total: float = 0.0
    largest: float = 0.0
    k3: float = 0.0

    @classmethod
    def of(cls, differences: NDArray[np.float64]) -> Gaps:
        """Gaps of some tokens [N]."""
        if not len(differences):
            return cls()
        sizes = np.abs(differences)
        k3 = np.expm1(np.minimum(differences, _MAX_LOG_RATIO)) - differences
        return cls(len(sizes), float(sizes.sum()), float(sizes.max()), float(k3.sum()))

    def merged(self, other: Gaps) -> Gaps:
        """Gaps over the tokens of both."""
        largest = max(self.largest, other.largest)
        return Gaps(self.tokens + other.tokens, self.total + other.total, largest, self.k3 + other.k3)

    def metrics(self, name: str) -> dict[str, float]:
        """`<name>_mean` and `_max`, nats, and `_kl`: the mean of exp(d) - 1 - d estimates KL(sampler || trainer) per
        token over the sampler's tokens (k3; Schulman 2020). Empty without a token."""
        if not self.tokens:
            return {}
        return {
            f"{name}_mean": self.total / self.tokens,
            f"{name}_max": self.largest,
            f"{name}_kl": self.k3 / self.tokens,
        }


@dataclass(frozen=True, slots=True)
class Distances:
    """Distances between sampler and trainer: of tokens from weights of the trainer's version, and from older ones."""

    same: Gaps = Gaps()
    stale: Gaps = Gaps()

    def merged(self, other: Distances) -> Distances:
        """Distances over the tokens of both."""
        return Distances(self.same.merged(other.same), self.stale.merged(other.stale))

    def metrics(self) -> dict[str, float]:
        """Metrics: `mismatch_*` over tokens of the trainer's version, `offpolicy_*` over the others, and their share as
        `stale_tokens`. What there is no token for is left out."""
        metrics = self.same.metrics("mismatch")
        if self.stale.tokens:
            metrics |= self.stale.metrics("offpolicy")
            metrics["stale_tokens"] = self.stale.tokens / (self.stale.tokens + self.same.tokens)
        return metrics


def distances(
    trainer: NDArray[np.float32], sampler: NDArray[np.float32], versions: NDArray[np.int32], version: int
) -> Distances:
    """Distances of every token, by whether it is of `version`, the trainer's.

    Args:
        trainer, sampler: [N] log-probabilities (nats).
        versions: [N], of the weights that each token was sampled with.
    """
    differences = trainer.astype(np.float64) - sampler
    same = versions == version
    return Distances(Gaps.of(differences[same]), Gaps.of(differences[~same]))
