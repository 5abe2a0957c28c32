"""How far probabilities and proportions can be trusted. Pure Python: evaluation and reports need no torch for it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The predictions that fell into [low, high) (the last bin is closed) and what came true of them."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean prediction; 0 in an empty bin."""
    frequency: float
    """Mean outcome; 0 in an empty bin."""


def reliability_bins(
    probabilities: Sequence[float], outcomes: Sequence[float], bins: int = 10
) -> tuple[ReliabilityBin, ...]:
    """Equal-width bins over [0, 1] (Guo et al. 2017, 1706.04599, section 2).

    Args:
        probabilities: n predictions in [0, 1].
        outcomes: n outcomes in [0, 1] (0/1, or a frequency).
        bins: how many bins.

    Raises: ValueError if there are none, the lengths differ or a number is outside [0, 1].
    """
    _check(probabilities, outcomes)
    members: list[list[int]] = [[] for _ in range(bins)]
    for index, probability in enumerate(probabilities):
        members[min(int(probability * bins), bins - 1)].append(index)
    return tuple(
        ReliabilityBin(
            low=number / bins,
            high=(number + 1) / bins,
            count=len(indices),
            confidence=fmean(probabilities[i] for i in indices) if indices else 0.0,
            frequency=fmean(outcomes[i] for i in indices) if indices else 0.0,
        )
        for number, indices in enumerate(members)
    )


def expected_calibration_error(probabilities: Sequence[float], outcomes: Sequence[float], bins: int = 10) -> float:
    """Mean over the predictions of |confidence - frequency| of their bin (the ECE); otherwise as `reliability_bins`."""
    parts = reliability_bins(probabilities, outcomes, bins)
    return sum(part.count * abs(part.confidence - part.frequency) for part in parts) / len(probabilities)


def brier_score(probabilities: Sequence[float], outcomes: Sequence[float]) -> float:
    """Mean squared distance of prediction and outcome, 0 best; arguments and errors of `reliability_bins`."""
    _check(probabilities, outcomes)
    return fmean((p - outcome) ** 2 for p, outcome in zip(probabilities, outcomes, strict=True))


def same_side(x: float, y: float) -> float:
    """Agreement of two margins (0: no preference): 1 where they have the same sign or both are 0, 0 where they have
    different ones, 1/2 where one of them is 0. Swapping the sides of both changes nothing."""
    if x != y and (x == 0 or y == 0):
        return 0.5
    return float((x > 0) == (y > 0))


def wilson_interval(successes: float, trials: float, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927): inside [0, 1] and sensible at 0 and at n of n.

    `successes` may be a sum of shares, such as the mean over several samples of each independent trial; `trials` what
    dependent ones are worth (see `effective_trials`).

    Returns: (low, high); (0, 1) without a trial.

    Raises: ValueError unless 0 <= successes <= trials and 0 < level < 1.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes={successes} must lie in 0..{trials}")
    z = _quantile(level)
    if trials == 0:
        return 0.0, 1.0
    proportion = successes / trials
    centre = (proportion + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(proportion * (1 - proportion) / trials + (z / (2 * trials)) ** 2) / (1 + z * z / trials)
    # At the ends the formula gives exactly 0 and 1 up to rounding.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def clustered_interval(clusters: Sequence[Sequence[float]], level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of the mean over all observations, where those of one cluster depend on each other.

    Args:
        clusters: shares in [0, 1] of each independent unit (a prompt), at least one in each.

    Returns: (low, high); (0, 1) without an observation.

    Raises: ValueError for an empty cluster or a share outside [0, 1].
    """
    shares = [share for own in clusters for share in own]
    if not shares:
        return wilson_interval(0, 0, level)
    trials = effective_trials(clusters, level)
    return wilson_interval(math.fsum(shares) / len(shares) * trials, trials, level)


def effective_trials(clusters: Sequence[Sequence[float]], level: float = 0.95) -> float:
    """How many independent trials the dependent observations of some clusters are worth, for an interval of `level`.

    N observations over the design effect (Kish 1965), the variance of their mean by the clusters' residuals over that
    of N independent ones, between 1 and sum(size^2) / N, where those of a cluster are all the same; the latter also
    where nothing varies. As that variance is told by few clusters, times (z / t)^2 (Korn and Graubard 1998). One
    observation in each cluster: N.

    Raises: ValueError for an empty cluster or a share outside [0, 1].
    """
    sizes = [len(own) for own in clusters]
    if any(size == 0 for size in sizes) or any(not 0 <= share <= 1 for own in clusters for share in own):
        raise ValueError("every cluster needs an observation, and every observation must lie in [0, 1]")
    total, units = sum(sizes), len(sizes)
    if total == units:
        return float(total)
    largest = sum(size * size for size in sizes) / total
    mean = math.fsum(share for own in clusters for share in own) / total
    independent = mean * (1 - mean) / (total - 1)
    if units == 1:
        return total / largest
    residuals = [math.fsum(own) - mean * len(own) for own in clusters]
    variance = units / (units - 1) * math.fsum(r * r for r in residuals) / total**2
    effect = variance / independent if independent > 0 else largest
    z = _quantile(level)
    return total / min(max(effect, 1.0), largest) * (z / _student_quantile(z, units - 1)) ** 2


def bootstrap_interval(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = fmean,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap (Efron 1979) of a statistic of independent values; the same arguments give the same answer.

    Returns: (low, high).

    Raises: ValueError without values, or unless 0 < level < 1.
    """
    if not values:
        raise ValueError("a bootstrap needs at least one value")
    _quantile(level)
    rng = random.Random(seed)
    draws = sorted(statistic(rng.choices(values, k=len(values))) for _ in range(resamples))
    tail = (1 - level) / 2
    return _percentile(draws, tail), _percentile(draws, 1 - tail)


def _percentile(ordered: Sequence[float], fraction: float) -> float:
    """Linear interpolation between the order statistics."""
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def _quantile(level: float) -> float:
    """Normal quantile of a two-sided level: 0.95 -> 1.96."""
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1")
    return NormalDist().inv_cdf(0.5 + level / 2)


def _student_quantile(z: float, freedom: int) -> float:
    """Student's t for the same level as the normal quantile `z` (Cornish-Fisher, two terms): 2.57 for 1.96 and 5."""
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _check(probabilities: Sequence[float], outcomes: Sequence[float]) -> None:
    if not probabilities or len(probabilities) != len(outcomes):
        raise ValueError(f"{len(probabilities)} probabilities and {len(outcomes)} outcomes: need as many, at least 1")
    for name, numbers in (("probability", probabilities), ("outcome", outcomes)):
        for number in numbers:
            if not 0 <= number <= 1:
                raise ValueError(f"{name} {number} is outside [0, 1]")
