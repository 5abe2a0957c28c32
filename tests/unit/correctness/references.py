"""Textbook definitions in plain Python, written for being read; none of the code under test is used."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from statistics import fmean, pstdev

Rows = list[list[float]]
"""Per sample, one number a response token."""


def quadratic_gae(
    rewards: Sequence[float], values: Sequence[float], after: float, gamma: float, lam: float
) -> list[float]:
    """1506.02438, equation 16: for each token the discounted sum of all later temporal differences, O(T²).

    `values[t]` is V before token t, `after` V of the state after the last one (0 where the episode ended).
    """
    following = [*values[1:], after]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
    return [
        sum((gamma * lam) ** (late - early) * deltas[late] for late in range(early, len(deltas)))
        for early in range(len(deltas))
    ]


def rewards_of(kl: Sequence[float], score: float, coefficient: float) -> list[float]:
    """2204.05862: the KL penalty on every token, the score on the last."""
    return [-coefficient * number + (score if place == len(kl) else 0.0) for place, number in enumerate(kl, start=1)]


def whitened(rows: Sequence[Sequence[float]]) -> Rows:
    """Mean 0 and population deviation 1 over all tokens of all samples."""
    everything = [number for row in rows for number in row]
    mean, deviation = fmean(everything), pstdev(everything)
    return [[(number - mean) / deviation for number in row] for row in rows]


def returns_to_go(rewards: Sequence[float], gamma: float) -> list[float]:
    """Discounted sum of the rewards from each token on."""
    return [
        sum(gamma ** (late - early) * rewards[late] for late in range(early, len(rewards)))
        for early in range(len(rewards))
    ]


def groups(totals: Sequence[float], size: int) -> Iterator[tuple[float, list[float]]]:
    """Each sample's number with those of the other samples of its prompt."""
    for index, total in enumerate(totals):
        start = index - index % size
        yield total, [totals[i] for i in range(start, start + size) if i != index]


def sequences(vocabulary: int, length: int) -> list[tuple[int, ...]]:
    """Every sequence of `length` tokens."""
    return list(itertools.product(range(vocabulary), repeat=length))


def exact_kl(p: Sequence[float], q: Sequence[float]) -> float:
    """KL(p || q) of two lists of log-probabilities over the same outcomes."""
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
