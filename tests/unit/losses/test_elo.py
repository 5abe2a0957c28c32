"""Ratings: the win fractions that they imply, what does not matter, what their intervals cover, and what happens where
somebody never loses."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_dist.losses.elo import ELO_PER_LOGIT, EloMatch, Rating, elo_ratings, fit


def meetings(first: str, second: str, shares: list[float]) -> list[EloMatch]:
    return [EloMatch(f"p{i}", first, second, share) for i, share in enumerate(shares)]


def points(won: float, lost: float) -> float:
    """Elo of a win fraction, half a win added on both sides."""
    return 400 * math.log10((won + 0.5) / (lost + 0.5))


def test_three_wins_of_four_by_hand() -> None:
    """3.5 wins to 1.5: odds of 7 to 3 are 400 log10(7/3) = 147.2 points."""
    found = elo_ratings(meetings("b", "a", [1.0, 1.0, 0.0, 1.0]), anchor="a", resamples=10)
    assert found.players["b"].value == pytest.approx(147.19, abs=0.01)
    assert found.players["a"] == Rating(0.0, 0.0, 0.0) and found.prompts == 4
    # Elo's own formula gives the win fraction back.
    assert 1 / (1 + 10 ** (-found.players["b"].value / 400)) == pytest.approx(0.7)


def test_fractions_of_wins_count_as_such() -> None:
    soft = elo_ratings(meetings("b", "a", [0.75] * 8), anchor="a", resamples=10)
    assert soft.players["b"].value == pytest.approx(points(6, 2), abs=1e-6)


def test_four_hundred_points_are_ten_to_one() -> None:
    found = elo_ratings(meetings("b", "a", [1.0] * 9 + [0.5]), anchor="a", resamples=10)  # 10 to 1 with the prior
    assert found.players["b"].value == pytest.approx(400.0)
    near = elo_ratings(meetings("b", "a", [1.0] * 1000 + [0.0] * 100), anchor="a", resamples=10)
    assert near.players["b"].value == pytest.approx(400.0, abs=1.0)


def test_a_chain_adds_up() -> None:
    """a and c never meet: what c has over b comes on top of what b has over a."""
    chain = meetings("b", "a", [1, 1, 1, 0]) + meetings("c", "b", [1, 1, 1, 0])
    found = elo_ratings(chain, anchor="a", resamples=10).players
    assert found["c"].value == pytest.approx(2 * points(3, 1), abs=1e-6)
    assert found["b"].value == pytest.approx(points(3, 1), abs=1e-6)


def test_who_always_wins_has_a_finite_rating_and_a_wide_interval() -> None:
    """10 of 10: 10.5 wins to 0.5, odds of 21. Nothing was seen that would bound it from above."""
    found = elo_ratings(meetings("b", "a", [1.0] * 10), anchor="a").players["b"]
    assert found.value == pytest.approx(400 * math.log10(21), abs=1e-6)
    assert 200 < found.low < 350 and 1300 < found.high < 3000
    near = elo_ratings(meetings("b", "a", [1.0 - 1e-12] * 10), anchor="a", resamples=5)
    assert near.players["b"].value == pytest.approx(400 * math.log10(21), abs=1e-3)


def test_fractions_make_no_jumps() -> None:
    """Whether the loser had a whole half win in all once decided on the prior: shares of 0.98 and 0.985 were 150 points
    apart."""
    shares = [0.9 + 0.001 * k for k in range(101)]
    found = [elo_ratings(meetings("b", "a", [s] * 40), "a", 1).players["b"].value for s in shares]
    steps = [b - a for a, b in zip(found, found[1:], strict=False)]
    assert min(steps) > 0 and max(steps) < 20
    assert elo_ratings(meetings("b", "a", [0.98] * 20), "a", 1).players["b"].value == pytest.approx(points(19.6, 0.4))


def test_one_that_nobody_beats_leaves_the_others_where_they_were() -> None:
    between = meetings("b", "a", [1, 1, 1, 0] * 15)
    alone = elo_ratings(between, anchor="a").players["b"]
    third = meetings("c", "a", [1.0] * 60) + meetings("c", "b", [1.0] * 60)
    found = elo_ratings(between + third, anchor="a").players
    for one, other in zip((alone.value, alone.low, alone.high),
                          (found["b"].value, found["b"].low, found["b"].high), strict=True):  # fmt: skip
        assert one == pytest.approx(other, abs=15)
    assert found["c"].value > 700 and found["c"].low > found["b"].high + 200


def test_several_meetings_on_one_prompt_are_one_piece_of_evidence() -> None:
    once = meetings("b", "a", [1.0, 0.0, 1.0, 1.0])
    assert elo_ratings(once * 5, "a", 200) == elo_ratings(once, "a", 200)
    mixed = [*once, EloMatch("p0", "b", "a", 0.0)]  # p0 now says one half: 2.5 of 4
    assert elo_ratings(mixed, "a", 5).players["b"].value == pytest.approx(points(2.5, 1.5), abs=1e-6)


def test_the_order_of_a_pair_does_not_matter() -> None:
    one = meetings("b", "a", [1.0, 0.3, 0.0, 0.9])
    other = [EloMatch(m.prompt, m.second, m.first, 1 - m.share) for m in one]
    a, b = (elo_ratings(x, "a", 100).players["b"] for x in (one, other))
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-6)


@pytest.mark.parametrize("truth", [0.5, 0.7, 0.95, 0.98, 0.995])
def test_intervals_hold_the_truth_nine_times_of_ten(truth: float) -> None:
    """Coverage over 60 prompts, exactly: the chance of each number of wins whose interval holds the truth. Resampled
    prompts with a prior where it was needed covered 0.68 at 0.98 and nothing at 0.995."""
    elo, held = 400 * math.log10(truth / (1 - truth)), 0.0
    for won in range(61):
        chance = math.comb(60, won) * truth**won * (1 - truth) ** (60 - won)
        if chance > 1e-4:
            found = elo_ratings(meetings("b", "a", [float(i < won) for i in range(60)]), "a", 2000).players["b"]
            assert found.low < found.value < found.high
            held += chance * (found.low <= elo <= found.high)
    assert held >= 0.9


def test_intervals_of_three_hold_the_truth() -> None:
    """Strengths 0, 300, 900 and noisy shares; each of 80 drawn tournaments is one trial."""
    truth = {"a": 0.0, "b": 300.0, "c": 900.0}
    held = dict.fromkeys("bc", 0)
    for trial in range(80):
        rng = random.Random(f"three {trial}")
        games = [
            EloMatch(f"p{i}", x, y, float(rng.random() < 1 / (1 + 10 ** ((truth[y] - truth[x]) / 400))))
            for i in range(60)
            for x, y in (("a", "b"), ("b", "c"), ("a", "c"))
        ]
        found = elo_ratings(games, "a", 300, trial).players
        for name in held:
            held[name] += found[name].low <= truth[name] <= found[name].high
    assert min(held.values()) >= 72


def test_intervals_shrink_with_more_prompts() -> None:
    def width(n: int) -> float:
        rng = random.Random(1)
        rating = elo_ratings(meetings("b", "a", [float(rng.random() < 0.7) for _ in range(n)]), "a", 400).players["b"]
        return rating.high - rating.low

    assert width(400) < 0.7 * width(50)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.floats(0, 1)), min_size=4, max_size=40))
def test_a_maximum_is_where_expected_wins_are_the_wins(games: list[tuple[int, int, float]]) -> None:
    """The condition of the maximum, checked player by player; players in a ring, so that all are joined."""
    won = np.zeros((4, 4))
    for i, j, share in [*games, (0, 1, 0.5), (1, 2, 0.5), (2, 3, 0.5)]:
        if i != j:
            won[i, j] += share
            won[j, i] += 1 - share
    [strength] = fit(won[None], 0)
    assert np.isfinite(strength).all() and strength[0] == 0
    chance = 1 / (1 + np.exp(strength[None, :] - strength[:, None]))
    assert ((won + won.T) * chance).sum(1) == pytest.approx(won.sum(1), abs=1e-6)


@settings(max_examples=60)
@given(st.lists(st.floats(-12, 3), min_size=3, max_size=3), st.lists(st.floats(-12, 3), min_size=3, max_size=3))
def test_a_draw_of_next_to_nothing_is_fitted_too(won: list[float], lost: list[float]) -> None:
    """Half wins of 1e-12 are drawn now and then: a chain has its maximum in closed form."""
    table = np.zeros((4, 4))
    for k, (w, x) in enumerate(zip(won, lost, strict=True)):
        table[k + 1, k], table[k, k + 1] = 10**w, 10**x
    [strength] = fit(table[None], 0)
    expected = np.cumsum([math.log(10) * (w - x) for w, x in zip(won, lost, strict=True)])
    assert strength[1:] == pytest.approx(expected, abs=0.02)


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
