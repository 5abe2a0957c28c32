"""How far the sampler's log-probabilities are from the trainer's: what two programs make of the same weights
(mismatch), and what the weights have moved since (off-policy)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import sub

from cai_dist.types import Trajectory

_MAX_LOG_RATIO = 20.0  # exp() of more would drown every other token


@dataclass(frozen=True, slots=True)
class Gaps:
    """Sums over tokens of d = log p_trainer - log p_sampler: of |d|, the largest |d|, and of exp(d) - 1 - d."""

    tokens: int = 0
    total: float = 0.0
    largest: float = 0.0
    k3: float = 0.0

    @classmethod
    def of(cls, differences: Sequence[float]) -> Gaps:
        """Of some tokens."""
        if not differences:
            return cls()
        sizes = list(map(abs, differences))
        k3 = math.fsum(math.expm1(min(d, _MAX_LOG_RATIO)) - d for d in differences)
        return cls(len(sizes), math.fsum(sizes), max(sizes), k3)

    def merged(self, other: Gaps) -> Gaps:
        """Of the tokens of both."""
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
    """Of the tokens that weights of the trainer's version made, and of those of older weights."""

    same: Gaps = Gaps()
    stale: Gaps = Gaps()

    def merged(self, other: Distances) -> Distances:
        """Of the tokens of both."""
        return Distances(self.same.merged(other.same), self.stale.merged(other.stale))

    def metrics(self) -> dict[str, float]:
        """As `mismatch_*` over tokens of the trainer's version, as `offpolicy_*` over the others, with `stale_tokens`,
        their share. What there is no token for is left out."""
        metrics = self.same.metrics("mismatch")
        if self.stale.tokens:
            metrics |= self.stale.metrics("offpolicy")
            metrics["stale_tokens"] = self.stale.tokens / (self.stale.tokens + self.same.tokens)
        return metrics


def distances(trajectories: Sequence[Trajectory], version: int) -> Distances:
    """Of every token, by whether it is of `version`, the trainer's."""
    same: list[float] = []
    stale: list[float] = []
    for item in trajectories:
        if not item.versions:  # all tokens are of the same weights, as almost always: no look at each
            kind = same if item.weight_version == version else stale
            kind.extend(map(sub, item.old_logprobs, item.sampler_logprobs))
            continue
        for of_token, ours, theirs in zip(item.versions, item.old_logprobs, item.sampler_logprobs, strict=True):
            (same if of_token == version else stale).append(ours - theirs)
    return Distances(Gaps.of(same), Gaps.of(stale))
