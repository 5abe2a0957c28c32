"""Temperature scaling (Guo et al. 2017, 1706.04599, section 4.2). Pure Python, like the measures of calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence

COLDEST, HOTTEST = 1e-3, 1e3
"""Where the fit stops: labels that every margin agrees with would have the temperature at 0, shuffled ones at
infinity."""


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def fit_temperature(margins: Sequence[float], labels: Sequence[float]) -> float:
    """The T for which the cross-entropy of sigma(margin / T) against the labels is least, within COLDEST..HOTTEST.

    The cross-entropy is convex in b = 1/T; its derivative, the sum of margin * (sigma(b * margin) - label), rises with
    b and is brought to 0 by bisection. Where all margins are 0 every T is as good: it is 1.

    Args:
        margins: n differences of scores (logits).
        labels: n probabilities in [0, 1] that the first of the two is the better one.

    Raises: ValueError if there are none or the lengths differ.
    """
    if not margins or len(margins) != len(labels):
        raise ValueError(f"{len(margins)} margins and {len(labels)} labels: need as many, at least 1")
    if not any(margins):
        return 1.0

    def slope(b: float) -> float:
        return math.fsum(m * (sigmoid(b * m) - p) for m, p in zip(margins, labels, strict=True))

    low, high = math.log(1 / HOTTEST), math.log(1 / COLDEST)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)
