"""Mean, variance and whitening of numbers in several places, by hand and against the whole."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean, pvariance

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai_dist.experience.moments import Moments, Whitening, explained_variance, whitened
from cai_dist.types import Trajectory

numbers = st.lists(st.floats(-1e3, 1e3), max_size=8)


def test_by_hand() -> None:
    # 1 2 3 6: mean 3, squares 4 + 1 + 0 + 9.
    found = Moments.of([1.0, 2.0]).merged(Moments.of([3.0, 6.0]))
    assert found == Moments(4, 3.0, 14.0) and found.variance == 3.5 and found.deviation == 3.5**0.5


def test_none_change_nothing() -> None:
    some = Moments.of([1.0, 2.0])
    assert Moments().deviation == 0.0
    assert Moments.of([]).merged(some) == some == some.merged(Moments.of([]))


@given(st.lists(numbers, min_size=1, max_size=5))
def test_parts_make_the_whole(parts: list[list[float]]) -> None:
    found = Moments()
    for part in parts:
        found = found.merged(Moments.of(part))
    every = [number for part in parts for number in part]
    assert found.count == len(every)
    if every:
        assert found.mean == pytest.approx(fmean(every), abs=1e-9)
        assert found.variance == pytest.approx(pvariance(every), rel=1e-9, abs=1e-7)


def test_equal_numbers_have_no_variance_and_become_zero() -> None:
    found = Moments.of([0.1] * 3).merged(Moments.of([0.1] * 7))
    assert found.squares == 0.0
    assert Whitening.by(found).apply(np.array([0.1, 0.1])).tolist() == [0.0, 0.0]


def test_whitened_numbers_have_mean_0_and_variance_1() -> None:
    every = [3.0, -1.0, 4.0, 1.5, -9.25]
    done = Whitening.by(Moments.of(every[:2]).merged(Moments.of(every[2:]))).apply(np.array(every)).tolist()
    assert fmean(done) == pytest.approx(0.0, abs=1e-12)
    assert pvariance(done) == pytest.approx(1.0, rel=1e-6)
    assert done[0] - done[1] == pytest.approx(4.0 / math.sqrt(pvariance(every)))


def test_only_advantages_are_whitened() -> None:
    item = Trajectory((1,), (2, 3), (-1.0,) * 2, (-1.0,) * 2, (), (5.0,) * 2, (2.0, 4.0), (), 1.0, "stop", 0, (), ())
    (done,) = whitened([item], Whitening(3.0, 2.0))
    assert done.advantages.tolist() == [-0.5, 0.5] and done == replace(item, advantages=done.advantages)
    assert whitened([item], None) == [item]


def test_explained_variance_by_hand() -> None:
    # Returns 1 2 3 6: 14. What is left 0 0 1 2, mean 0.75: 0.5625 x 2 + 0.0625 + 1.5625 = 2.75.
    returns, left = Moments.of([1.0, 2.0, 3.0, 6.0]), Moments.of([0.0, 0.0, 1.0, 2.0])
    assert explained_variance(returns, left) == pytest.approx(1 - 2.75 / 14, rel=1e-12)
    assert explained_variance(Moments.of([0.1] * 3), left) == 0.0
