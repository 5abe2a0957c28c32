"""Ratings: the win fractions that they imply, what does not matter, and what happens where somebody never loses."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_dist.losses.elo import ELO_PER_LOGIT, Meeting, elo_ratings, fit


def meetings(first: str, second: str, shares: list[float]) -> list[Meeting]:
    return [Meeting(f"p{i}", first, second, share) for i, share in enumerate(shares)]


def test_three_wins_of_four_by_hand() -> None:
    """Odds of 3 to 1 are 400 log10(3) = 190.8 points."""
    found = elo_ratings(meetings("b", "a", [1.0, 1.0, 0.0, 1.0]), anchor="a", resamples=10)
    assert found.players["b"].value == pytest.approx(400 * math.log10(3), abs=1e-6)
    assert found.players["a"].value == 0.0 and found.prompts == 4 and not found.prior
    # Elo's own formula gives the win fraction back.
    assert 1 / (1 + 10 ** (-found.players["b"].value / 400)) == pytest.approx(0.75)


def test_fractions_of_wins_count_as_such() -> None:
    soft = elo_ratings(meetings("b", "a", [0.75] * 8), anchor="a", resamples=10)
    assert soft.players["b"].value == pytest.approx(400 * math.log10(3), abs=1e-6)
    assert soft.players["b"].low == pytest.approx(soft.players["b"].high, abs=1e-6)  # every prompt says the same


def test_four_hundred_points_are_ten_to_one() -> None:
    found = elo_ratings(meetings("b", "a", [1.0] * 10 + [0.0]), anchor="a", resamples=10)
    assert found.players["b"].value == pytest.approx(400.0)


def test_a_chain_adds_up() -> None:
    """a and c never meet: c over b over a, each three to one, makes nine to one."""
    chain = meetings("b", "a", [1, 1, 1, 0]) + meetings("c", "b", [1, 1, 1, 0])
    found = elo_ratings(chain, anchor="a", resamples=10).players
    assert found["c"].value == pytest.approx(400 * math.log10(9), abs=1e-6)
    assert found["b"].value == pytest.approx(400 * math.log10(3), abs=1e-6)


def test_who_always_wins_is_rated_with_half_a_win_for_the_other() -> None:
    """10 of 10: 10.5 wins to 0.5, odds of 21."""
    found = elo_ratings(meetings("b", "a", [1.0] * 10), anchor="a", resamples=50)
    assert found.prior
    assert found.players["b"].value == pytest.approx(400 * math.log10(21), abs=1e-6)
    assert found.players["b"].low == found.players["b"].high == pytest.approx(400 * math.log10(21), abs=1e-6)
    # The same where shares are next to nothing, instead of a rating of thousands.
    near = elo_ratings(meetings("b", "a", [1.0 - 1e-12] * 10), anchor="a", resamples=5)
    assert near.prior and near.players["b"].value == pytest.approx(400 * math.log10(21), abs=1e-3)


def test_one_that_nobody_beats_asks_for_the_prior_though_all_have_met() -> None:
    """a and b take turns, c beats both: connected as a graph, but nobody ever reaches c."""
    games = meetings("a", "b", [1, 0] * 4) + meetings("c", "a", [1.0] * 8) + meetings("c", "b", [1.0] * 8)
    found = elo_ratings(games, anchor="a", resamples=20)
    assert found.prior and found.players["c"].value > 400 and abs(found.players["b"].value) < 1e-6


def test_several_meetings_on_one_prompt_are_one_piece_of_evidence() -> None:
    once = meetings("b", "a", [1.0, 0.0, 1.0, 1.0])
    assert elo_ratings(once * 5, "a", 200) == elo_ratings(once, "a", 200)
    mixed = [*once, Meeting("p0", "b", "a", 0.0)]  # p0 now says one half: 2.5 of 4
    assert elo_ratings(mixed, "a", 5).players["b"].value == pytest.approx(400 * math.log10(2.5 / 1.5), abs=1e-6)


def test_the_order_of_a_pair_does_not_matter() -> None:
    one = meetings("b", "a", [1.0, 0.3, 0.0, 0.9])
    other = [Meeting(m.prompt, m.second, m.first, 1 - m.share) for m in one]
    a, b = (elo_ratings(x, "a", 100).players["b"] for x in (one, other))
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-6)


def test_intervals_cover_and_shrink_with_more_prompts() -> None:
    def width(n: int) -> float:
        rng = random.Random(1)
        rating = elo_ratings(meetings("b", "a", [float(rng.random() < 0.7) for _ in range(n)]), "a", 400).players["b"]
        assert rating.low < rating.value < rating.high
        return rating.high - rating.low

    assert width(400) < 0.7 * width(50)
    # 95 of 100 intervals should hold the truth, 400 log10(0.7/0.3); 84 or fewer would be far out.
    truth, held = 400 * math.log10(7 / 3), 0
    for trial in range(100):
        rng = random.Random(f"cover {trial}")
        found = elo_ratings(meetings("b", "a", [float(rng.random() < 0.7) for _ in range(60)]), "a", 200)
        held += found.players["b"].low <= truth <= found.players["b"].high
    assert held >= 85


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.floats(0, 1)), min_size=4, max_size=40))
def test_a_maximum_is_where_expected_wins_are_the_wins(games: list[tuple[int, int, float]]) -> None:
    """The condition of the maximum, checked player by player; players in a ring, so that all are joined."""
    won, met = np.zeros((4, 4)), np.zeros((4, 4))
    for i, j, share in [*games, (0, 1, 0.5), (1, 2, 0.5), (2, 3, 0.5)]:
        if i != j:
            won[i, j] += share
            won[j, i] += 1 - share
            met[i, j] += 1
            met[j, i] += 1
    strength, prior = fit(won[None], met[None], 0)
    assert np.isfinite(strength).all() and strength[0, 0] == 0
    if prior[0]:
        won, met = won + 0.5 * (met > 0), met + (met > 0)
    chance = 1 / (1 + np.exp(strength[0][None, :] - strength[0][:, None]))
    assert (met * chance).sum(1) == pytest.approx(won.sum(1), abs=1e-6)


def test_what_cannot_be_rated_is_refused() -> None:
    for wrong, message in (
        ([], "at least one"),
        (meetings("a", "a", [1.0]), "two players"),
        (meetings("b", "a", [1.5]), "in \\[0, 1\\]"),
        (meetings("b", "c", [1.0]), "met nobody"),
        (meetings("b", "a", [0.5]) + meetings("c", "d", [0.5]), "no chain"),
    ):
        with pytest.raises(ValueError, match=message):
            elo_ratings(wrong, anchor="a")


def test_one_logit_is_174_points() -> None:
    assert pytest.approx(173.7, abs=0.05) == ELO_PER_LOGIT  # 2204.05862: "dElo = 174 dPM"
