"""Ratings of models from pairwise judgements: Bradley-Terry on Elo's scale (Elo 1978; Bradley and Terry 1952;
2204.05862: a win fraction of 1 / (1 + 10^(-difference / 400))). Numpy alone.

Wins may be fractions: a judge that says 0.7 gives 0.7 of a win to one side and 0.3 to the other. One prompt is one
piece of evidence, however many answers to it were compared.

**One prior, always.** Every pair that met has half a win more on both sides, in the ratings and behind the intervals.
Without it who never loses has no finite rating, and where a prior comes in only then, a rating jumps when the first
game is lost.

**Intervals** are from the Bayesian bootstrap (Rubin 1981): in each draw every prompt weighs Exp(1) and each half win
Gamma(1/2), so that the prior is drawn as the data are. For two players and whole wins w and l a draw's chance of
winning is then exactly Beta(w + 1/2, l + 1/2), Jeffreys' posterior. Resampling prompts would draw 60 wins of 60 again
and again: an interval of no width.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ELO_PER_LOGIT = 400.0 / math.log(10.0)
"""Elo points of one unit of log-odds, 173.7."""
PRIOR = 0.5
"""Wins added on both sides of every pair that met."""
_STEPS = 100
_TOLERANCE = 1e-18
_LEAST = 1e-12
"""Of a drawn half win, so that the strengths behind a draw are finite numbers."""


@dataclass(frozen=True, slots=True)
class EloMatch:
    """One judgement: the share of a win, in [0, 1], that `first` has over `second` on a prompt."""

    prompt: str
    first: str
    second: str
    share: float


@dataclass(frozen=True, slots=True)
class Rating:
    """Elo relative to the anchor, with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ratings:
    """The ratings of all players."""

    players: dict[str, Rating]
    prompts: int


def elo_ratings(meetings: Sequence[EloMatch], anchor: str, resamples: int = 1000, seed: int = 0) -> Ratings:
    """Elo of every player that met another, the anchor's being 0, with 95% percentile intervals over prompts.

    Several meetings of the same two on one prompt count as one, by their mean. Ratings are those of the largest
    likelihood of the wins and the prior's half wins; `resamples` draws of the Bayesian bootstrap make the intervals.

    Raises: ValueError without meetings, for a share outside [0, 1], a player that meets itself, an anchor that met
        nobody, or players that cannot be compared because no chain of meetings joins them.
    """
    players, won = _tables(meetings)
    if anchor not in players:
        raise ValueError(f"the anchor {anchor!r} met nobody")
    zero = players.index(anchor)
    total = won.sum(0)
    met = (total + total.T) > 0
    [value] = fit((total + PRIOR * met)[None], zero)
    rng = np.random.default_rng(seed)
    weights = rng.standard_exponential((resamples, len(won)))
    half_wins = np.maximum(rng.standard_gamma(PRIOR, (resamples, *met.shape)), _LEAST)
    draws = fit(np.einsum("rp,pij->rij", weights, won) + half_wins * met, zero)
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    order = dict.fromkeys(name for m in meetings for name in (m.first, m.second))
    return Ratings(
        {
            name: Rating(*(float(ELO_PER_LOGIT * x[players.index(name)]) + 0.0 for x in (value, low, high)))
            for name in order
        },
        len(won),
    )


def fit(won: Array, zero: int) -> Array:
    """Log-strengths with the maximum likelihood, for R tables at once, by Newton's method.

    Args:
        won: [R, K, K], wins of the row's player over the column's. There is one finite maximum where everybody is
            joined to everybody by a chain of wins (Ford 1957); the prior sees to that.
        zero: the player whose strength is 0.

    Returns: strengths [R, K] in log-odds.
    """
    games = won + won.transpose(0, 2, 1)
    strength = np.zeros(won.shape[:2])
    others = [i for i in range(won.shape[1]) if i != zero]
    likelihood = _likelihood(strength, won)
    for _ in range(_STEPS):
        step = np.zeros_like(strength)
        step[:, others], gain = _newton(strength, won, games, others)
        if float(gain.max(initial=0.0)) < _TOLERANCE:
            break
        size = np.ones(len(strength))
        for _ in range(30):  # the likelihood is concave: a shorter step always helps in the end
            tried = _likelihood(strength + size[:, None] * step, won)
            worse = tried < likelihood - 1e-12 * np.abs(likelihood)
            if not worse.any():
                break
            size[worse] /= 2
        strength = strength + size[:, None] * step
        likelihood = _likelihood(strength, won)
    return strength


def _newton(strength: Array, won: Array, games: Array, others: list[int]) -> tuple[Array, Array]:
    """The step [R, K-1] of everybody but the anchor, and what it promises to gain in likelihood [R]."""
    chance = _chance(strength)
    # Not `won - games * chance`, which loses all its digits where somebody nearly always wins.
    gradient = (won * chance.transpose(0, 2, 1) - won.transpose(0, 2, 1) * chance).sum(2)[:, others]
    weight = games * chance * chance.transpose(0, 2, 1)
    curvature = -weight
    index = np.arange(strength.shape[1])
    curvature[:, index, index] = weight.sum(2)
    part: Array = curvature[:, others][:, :, others]
    step: Array = np.linalg.solve(part, gradient[..., None])[..., 0]
    return np.clip(step, -2.0, 2.0), np.abs(gradient * step).sum(1)


def _chance(strength: Array) -> Array:
    """P(row beats column), [R, K, K]."""
    difference = strength[:, :, None] - strength[:, None, :]
    chance: Array = 1.0 / (1.0 + np.exp(-np.clip(difference, -500, 500)))
    return chance


def _likelihood(strength: Array, won: Array) -> Array:
    """Log-likelihood [R]."""
    difference = strength[:, :, None] - strength[:, None, :]
    total: Array = -(won * np.logaddexp(0.0, -difference)).sum((1, 2))
    return total


def _tables(meetings: Sequence[EloMatch]) -> tuple[list[str], Array]:
    """Players by name, and [prompts, K, K] wins: the mean share where two met, both sides' being 1 together."""
    if not meetings:
        raise ValueError("ratings need at least one meeting")
    shares: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for m in meetings:
        if m.first == m.second or not 0 <= m.share <= 1:
            raise ValueError(f"{m}: needs two players and a share in [0, 1]")
        swapped = m.second < m.first
        pair = (m.second, m.first) if swapped else (m.first, m.second)
        shares[m.prompt][pair].append(1 - m.share if swapped else m.share)
    players = sorted({name for m in meetings for name in (m.first, m.second)})
    place = {name: i for i, name in enumerate(players)}
    won = np.zeros((len(shares), len(players), len(players)))
    for row, pairs in enumerate(shares.values()):
        for (first, second), found in pairs.items():
            i, j = place[first], place[second]
            share = math.fsum(found) / len(found)
            won[row, i, j], won[row, j, i] = share, 1.0 - share
    total = won.sum(0)
    if not _joined((total + total.T) > 0):
        raise ValueError(f"no chain of meetings joins {', '.join(players)}")
    return players, won


def _joined(edges: NDArray[np.bool_]) -> bool:
    """Whether every node is reached from the first along edges [K, K]."""
    seen = np.zeros(len(edges), dtype=bool)
    seen[0] = True
    for _ in range(len(edges)):
        seen |= edges[seen].any(0)
    return bool(seen.all())
