"""Calibration and intervals against values worked by hand, and that they need no torch."""

from __future__ import annotations

import random
import subprocess
import sys
from statistics import median

import pytest

from cai_dist.losses.calibration import (
    bootstrap_interval,
    brier_score,
    clustered_interval,
    effective_trials,
    expected_calibration_error,
    reliability_bins,
    same_side,
    wilson_interval,
)

PROBABILITIES = [0.1, 0.1, 0.9, 0.7]
OUTCOMES = [0, 1, 1, 1]


def test_bins_and_errors_by_hand() -> None:
    low, high = reliability_bins(PROBABILITIES, OUTCOMES, bins=2)
    assert (low.low, low.high, low.count) == (0.0, 0.5, 2) and (high.low, high.high, high.count) == (0.5, 1.0, 2)
    assert (low.confidence, low.frequency) == pytest.approx((0.1, 0.5))
    assert (high.confidence, high.frequency) == pytest.approx((0.8, 1.0))
    # 2/4 x 0.4 + 2/4 x 0.2
    assert expected_calibration_error(PROBABILITIES, OUTCOMES, bins=2) == pytest.approx(0.3)
    # (0.01 + 0.81 + 0.01 + 0.09) / 4
    assert brier_score(PROBABILITIES, OUTCOMES) == pytest.approx(0.23)


def test_the_ends_fall_into_the_outer_bins() -> None:
    parts = reliability_bins([0.0, 1.0, 0.5], [0, 1, 1], bins=4)
    assert [part.count for part in parts] == [1, 0, 1, 1]
    assert (parts[1].confidence, parts[1].frequency) == (0.0, 0.0)


def test_calibrated_forecasts_have_no_error_and_wrong_ones_do() -> None:
    rng = random.Random(0)
    forecasts = [rng.random() for _ in range(20_000)]
    outcomes = [float(rng.random() < p) for p in forecasts]
    assert expected_calibration_error(forecasts, outcomes) < 0.02
    assert expected_calibration_error([1 - p for p in forecasts], outcomes) > 0.4


@pytest.mark.parametrize(("p", "y"), [([], []), ([0.5], [1, 0]), ([1.5], [1]), ([0.5], [-1]), ([float("nan")], [1])])
def test_bad_input_is_refused(p: list[float], y: list[float]) -> None:
    for function in (reliability_bins, expected_calibration_error, brier_score):
        with pytest.raises(ValueError, match="outcome|probabilit"):
            function(p, y)


def test_wilson_by_hand() -> None:
    # 8 of 10 at z = 1.96: centre (0.8 + 0.19207) / 1.38415, half width 1.96 sqrt(0.016 + 0.009604) / 1.38415.
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    # Nothing in n: the upper end is z^2 / (n + z^2).
    assert wilson_interval(0, 10) == pytest.approx((0.0, 3.8415 / 13.8415), abs=1e-4)
    assert wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_mirrors_narrows_and_widens() -> None:
    low, high = wilson_interval(3, 40)
    assert wilson_interval(37, 40) == pytest.approx((1 - high, 1 - low))
    assert 0 < low < 3 / 40 < high < 1
    wide = wilson_interval(3, 40, level=0.99)
    many = wilson_interval(300, 4000)
    assert wide[0] < low and wide[1] > high and many[0] > low and many[1] < high


def test_wilson_covers_what_it_promises() -> None:
    # Exact, from the binomial: n = 30, p = 0.1.
    from math import comb

    covered = 0.0
    for k in range(31):
        low, high = wilson_interval(k, 30)
        if low <= 0.1 <= high:
            covered += comb(30, k) * 0.1**k * 0.9 ** (30 - k)
    assert 0.93 < covered < 0.99


@pytest.mark.parametrize("call", [lambda: wilson_interval(3, 2), lambda: wilson_interval(-1, 2)])
def test_impossible_counts_are_refused(call) -> None:
    with pytest.raises(ValueError, match="successes"):
        call()
    with pytest.raises(ValueError, match="level"):
        wilson_interval(1, 2, level=95)


def of_clusters(rng: random.Random, prompts: int, pairs: int, mean: float, alike: float) -> list[list[float]]:
    """0/1 observations of prompts with a beta-distributed chance each: correlation `alike` within a prompt."""
    a = (1 - alike) / alike
    chances = [rng.betavariate(mean * a, (1 - mean) * a) for _ in range(prompts)]
    return [[float(rng.random() < chance) for _ in range(pairs)] for chance in chances]


@pytest.mark.parametrize("pairs", [1, 2, 4, 8])
def test_intervals_over_prompts_cover_however_many_pairs_a_prompt_has(pairs: int) -> None:
    """The long table of benchmarks/interval_coverage.py in small: 95% hold the truth in 93% of cases at least."""
    rng = random.Random(7)
    hits = pooled = 0
    for _ in range(500):
        found = of_clusters(rng, 30, pairs, 0.6, 0.27)
        low, high = clustered_interval(found)
        hits += low <= 0.6 <= high
        low, high = wilson_interval(sum(map(sum, found)), 30 * pairs)
        pooled += low <= 0.6 <= high
    assert hits / 500 >= 0.93
    if pairs >= 4:  # what counting pairs would cover
        assert pooled / 500 < 0.90


def test_effective_trials_by_hand() -> None:
    # One observation each: as many as there are. Copies: as many as prompts, less for telling that from few.
    assert effective_trials([[1.0], [0.0], [1.0]]) == 3.0
    assert clustered_interval([[1.0]] * 8 + [[0.0]] * 2) == wilson_interval(8, 10)
    copies = effective_trials([[1.0] * 4, [0.0] * 4] * 50)
    assert 95 < copies < 100
    # Nothing varies: there is no telling how alike they are, so each prompt is worth one.
    assert effective_trials([[1.0] * 4] * 100) == pytest.approx(copies)
    # Each prompt as good as any other: 4 pairs, 2 of them right. Never more than there are observations.
    assert 380 < effective_trials([[1.0, 1.0, 0.0, 0.0]] * 100) < 400
    assert effective_trials([[1.0, 0.0, 1.0]]) == 1.0
    assert clustered_interval([]) == (0.0, 1.0)
    with pytest.raises(ValueError, match="every cluster"):
        effective_trials([[1.0], []])
    with pytest.raises(ValueError, match="every observation"):
        clustered_interval([[1.0], [1.5]])


def test_margins_on_the_same_side() -> None:
    assert [same_side(x, y) for x, y in ((2, 1), (-2, -1), (2, -1), (-1, 2), (0, 1), (1, 0), (0, -1), (0, 0))] == [
        1, 1, 0, 0, 0.5, 0.5, 0.5, 1,
    ]  # fmt: skip


def test_bootstrap_is_repeatable_and_about_right() -> None:
    rng = random.Random(1)
    values = [rng.gauss(5, 2) for _ in range(400)]
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert (low, high) != bootstrap_interval(values, seed=1)
    # The standard error is 2 / sqrt(400) = 0.1, so the interval is about 4 x 0.1 x 0.98 wide.
    assert high - low == pytest.approx(0.392, rel=0.15)
    assert low < sum(values) / 400 < high
    assert bootstrap_interval(values, statistic=median)[0] > 4.5


def test_bootstrap_of_a_constant_has_no_width() -> None:
    assert bootstrap_interval([0.0] * 5) == (0.0, 0.0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([1.0], level=1.0)


def test_no_torch_is_imported() -> None:
    code = "import sys, cai_dist.losses.calibration; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
