"""Explained variance of the values, by hand."""

from __future__ import annotations

import pytest

from cai_dist.coordinator.update_phase import explained_variance
from cai_dist.types import Trajectory


def trajectory(values: tuple[float, ...], returns: tuple[float, ...]) -> Trajectory:
    zeros = (0.0,) * len(values)
    return Trajectory(
        (1,), (2,) * len(values), zeros, zeros, values, zeros, zeros, returns, 0.0, "stop", 0, zeros, zeros
    )  # fmt: skip


def test_explained_variance_by_hand() -> None:
    # Returns 1 2 3 6, mean 3: 4 + 1 + 0 + 9 = 14. What is left 0 0 1 2, mean 0.75: 0.5625 x 2 + 0.0625 + 1.5625 = 2.75.
    items = [trajectory((1.0, 2.0), (1.0, 2.0)), trajectory((2.0, 4.0), (3.0, 6.0))]
    assert explained_variance(items) == pytest.approx(1 - 2.75 / 14, rel=1e-12)


def test_equal_returns_explain_nothing() -> None:
    assert explained_variance([trajectory((0.3, 0.1), (0.1, 0.1)), trajectory((0.7,), (0.1,))]) == 0.0
