"""Mean and variance of numbers that lie in several places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cai_dist.types import Trajectory

EPSILON = 1e-8
"""Keeps whitened constants (a single number too) at 0 instead of NaN."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of `count` numbers: their mean, and the sum of the squared distances from it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, numbers: Sequence[float] | NDArray[np.floating]) -> Moments:
        """Moments of [N] numbers, summed in float64 around the first: `squares` is exactly 0 where all are equal."""
        array = np.asarray(numbers, dtype=np.float64)
        if not len(array):
            return cls()
        moved = array - array[0]
        mean = moved.mean()
        return cls(len(array), float(array[0] + mean), float(((moved - mean) ** 2).sum()))

    def merged(self, other: Moments) -> Moments:
        """Moments of the numbers of both (Chan, Golub, LeVeque 1983)."""
        if not self.count or not other.count:
            return self if self.count else other
        count, apart = self.count + other.count, other.mean - self.mean
        share = other.count / count
        squares = self.squares + other.squares + apart**2 * self.count * share
        return Moments(count, self.mean + apart * share, squares)

    @property
    def variance(self) -> float:
        """Variance of the population; 0 of none."""
        return self.squares / self.count if self.count else 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation of the population; 0 of none."""
        return math.sqrt(self.variance)


@dataclass(frozen=True, slots=True)
class Whitening:
    """What makes the mean of all advantages of an iteration 0 and their variance 1. Of the whole iteration: statistics
    of a rank or a mini-batch would weigh samples by their company."""

    mean: float
    deviation: float

    @classmethod
    def by(cls, moments: Moments) -> Whitening:
        """The mean is not added back."""
        return cls(moments.mean, math.sqrt(moments.variance + EPSILON))

    def apply(self, numbers: NDArray[np.floating]) -> NDArray[np.float64]:
        """(number - mean) / deviation of each, in float64."""
        return (numbers.astype(np.float64) - self.mean) / self.deviation


NO_WHITENING = Whitening(0.0, 1.0)
"""Leaves advantages as they are."""


def whitened(items: Sequence[Trajectory], whitening: Whitening | None) -> list[Trajectory]:
    """With whitened advantages; None leaves them as they are."""
    if whitening is None:
        return list(items)
    return [replace(item, advantages=whitening.apply(item.advantages).astype(np.float32)) for item in items]


def explained_variance(returns: Moments, residuals: Moments) -> float:
    """1 - Var(return - value) / Var(return) over all tokens: 1 perfect, 0 no better than a constant.

    0 where all returns are equal.
    """
    return 1.0 - residuals.squares / returns.squares if returns.squares else 0.0
