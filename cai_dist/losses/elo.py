"""Ratings of models from pairwise judgements: Bradley-Terry by maximum likelihood on Elo's scale (Elo 1978; Bradley and
Terry 1952; 2204.05862, section 5: a win fraction of 1 / (1 + 10^(-difference / 400))). Numpy alone.

Wins may be fractions: a judge that says 0.7 gives 0.7 of a win to one side and 0.3 to the other. One prompt is one
piece of evidence, however many answers to it were compared.
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
HALF_WIN = 0.5
"""What counts as having won against somebody, and the size of the prior where one side never has."""
_STEPS = 100
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Meeting:
    """One judgement: the share of a win, in [0, 1], that `first` has over `second` on a prompt."""

    prompt: str
    first: str
    second: str
    share: float


@dataclass(frozen=True, slots=True)
class Rating:
    """Elo relative to the anchor, with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ratings:
    """The ratings of all players."""

    players: dict[str, Rating]
    prompts: int
    prior: bool
    """Somebody never won half a game against the others (or never lost one), so that no finite rating has the maximum
    likelihood: half a win was added on both sides of every pair that met."""


def elo_ratings(meetings: Sequence[Meeting], anchor: str, resamples: int = 1000, seed: int = 0) -> Ratings:
    """Elo of every player that met another, the anchor's being 0, with 95% percentile intervals over prompts.

    Several meetings of the same two on one prompt count as one, by their mean. The bootstrap draws prompts with
    replacement; each draw is fitted in the same way.

    Raises: ValueError without meetings, for a share outside [0, 1], a player that meets itself, an anchor that met
        nobody, or players that cannot be compared because no chain of meetings joins them.
    """
    players, games, won = _tables(meetings)
    if anchor not in players:
        raise ValueError(f"the anchor {anchor!r} met nobody")
    zero = players.index(anchor)
    value, prior = fit(won.sum(0)[None], games.sum(0)[None], zero)
    rng = np.random.default_rng(seed)
    prompts = games.shape[0]
    # How often each prompt is drawn, [resamples, prompts]: resampled sums are then one product.
    drawn = rng.multinomial(prompts, np.full(prompts, 1.0 / prompts), size=resamples).astype(np.float64)
    met = np.einsum("rp,pij->rij", drawn, games)
    keep = np.array([_joined(one > 0) for one in met])  # few prompts: a draw may leave players apart
    draws = fit(np.einsum("rp,pij->rij", drawn[keep], won), met[keep], zero)[0] if keep.any() else value
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    ratings = {
        name: Rating(*(float(ELO_PER_LOGIT * x[i]) + 0.0 for x in (value[0], low, high)))
        for i, name in enumerate(players)
    }
    return Ratings(ratings, prompts, bool(prior[0]))


def fit(won: Array, games: Array, zero: int) -> tuple[Array, NDArray[np.bool_]]:
    """Log-strengths with the maximum likelihood, for R tables at once, by Newton's method.

    Args:
        won: [R, K, K], wins of the row's player over the column's.
        games: [R, K, K], symmetric, their games.
        zero: the player whose strength is 0.

    Returns: strengths [R, K] in log-odds, and bool [R]: where the prior was needed. The likelihood has one finite
    maximum exactly where everybody is joined to everybody by a chain of wins (Ford 1957); a win counts here from half a
    game on.
    """
    won, games = won.copy(), games.copy()
    prior = np.array([not _joined_by_wins(one >= HALF_WIN) for one in won])
    met = games > 0
    won[prior] += HALF_WIN * met[prior]
    games[prior] += 2 * HALF_WIN * met[prior]
    strength = np.zeros(won.shape[:2])
    others = [i for i in range(won.shape[1]) if i != zero]
    likelihood = _likelihood(strength, won)
    for _ in range(_STEPS):
        step = np.zeros_like(strength)
        step[:, others] = _newton(strength, won, games, others)
        size = np.ones(len(strength))
        for _ in range(30):  # the likelihood is concave: a shorter step always helps in the end
            tried = _likelihood(strength + size[:, None] * step, won)
            worse = tried < likelihood - 1e-12 * np.abs(likelihood)
            if not worse.any():
                break
            size[worse] /= 2
        strength = strength + size[:, None] * step
        likelihood = _likelihood(strength, won)
        if float(np.abs(size[:, None] * step).max(initial=0.0)) < _TOLERANCE:
            break
    return strength, prior


def _newton(strength: Array, won: Array, games: Array, others: list[int]) -> Array:
    """The step [R, K-1] of everybody but the anchor."""
    chance = _chance(strength)
    gradient = (won - games * chance).sum(2)[:, others]
    weight = games * chance * (1 - chance)
    curvature = -weight
    index = np.arange(strength.shape[1])
    curvature[:, index, index] = weight.sum(2)
    part: Array = curvature[:, others][:, :, others]
    step: Array = np.linalg.solve(part, gradient[..., None])[..., 0]
    return np.clip(step, -2.0, 2.0)


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


def _tables(meetings: Sequence[Meeting]) -> tuple[list[str], Array, Array]:
    """Players, and [prompts, K, K] games (1 where two met) and wins (the mean share)."""
    if not meetings:
        raise ValueError("ratings need at least one meeting")
    shares: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for m in meetings:
        if m.first == m.second or not 0 <= m.share <= 1:
            raise ValueError(f"{m}: needs two players and a share in [0, 1]")
        swapped = m.second < m.first
        pair = (m.second, m.first) if swapped else (m.first, m.second)
        shares[m.prompt][pair].append(1 - m.share if swapped else m.share)
    players = list(dict.fromkeys(name for m in meetings for name in (m.first, m.second)))
    place = {name: i for i, name in enumerate(players)}
    games, won = (np.zeros((len(shares), len(players), len(players))) for _ in range(2))
    for row, pairs in enumerate(shares.values()):
        for (first, second), found in pairs.items():
            i, j = place[first], place[second]
            share = math.fsum(found) / len(found)
            games[row, i, j] = games[row, j, i] = 1.0
            won[row, i, j], won[row, j, i] = share, 1.0 - share
    if not _joined(games.sum(0) > 0):
        raise ValueError(f"no chain of meetings joins {', '.join(players)}")
    return players, games, won


def _joined(edges: NDArray[np.bool_]) -> bool:
    """Whether every node is reached from the first along edges [K, K]."""
    seen = np.zeros(len(edges), dtype=bool)
    seen[0] = True
    for _ in range(len(edges)):
        seen |= edges[seen].any(0)
    return bool(seen.all())


def _joined_by_wins(edges: NDArray[np.bool_]) -> bool:
    """Whether the directed graph is strongly connected."""
    return _joined(edges) and _joined(edges.T)
