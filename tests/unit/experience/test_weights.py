"""What a token counts for: aggregation against the definitions, and importance weights by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_dist.experience.token_weights import Importance, aggregation_weight, denominator
from cai_dist.experience.token_weights import importance as of_arrays
from cai_dist.types import RemoteBlock, RemoteRow, TrajectoryRef
from tests.unit.coordinator.small_run import make_config


def importance(trainer: list[float], sampler: list[float], cap: float | None) -> Importance:
    return of_arrays(np.float32(trainer), np.float32(sampler), cap)


def ref(length: int) -> TrajectoryRef:
    return TrajectoryRef(RemoteRow(RemoteBlock([]), 0), 1 + length, length)


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=1, max_size=5))
def test_weights_over_denominator_are_the_means_of_their_names(losses: list[list[float]]) -> None:
    batch = [ref(len(row)) for row in losses]
    count, tokens = len(losses), sum(map(len, losses))
    expected = {
        "token": sum(map(sum, losses)) / tokens,
        "sequence": sum(sum(row) / len(row) for row in losses) / count,
        "constant": sum(sum(row) / 6 for row in losses) / count,  # max_new_tokens of the config
    }
    for aggregate, wanted in expected.items():
        config = make_config(aggregate=aggregate)
        weights = aggregation_weight(np.array([len(row) for row in losses]), config)
        total = sum(weight * number for weight, row in zip(weights, losses, strict=True) for number in row)
        assert total / denominator(batch, config) == pytest.approx(wanted, abs=1e-12)


def test_importance_by_hand() -> None:
    # Ratios 2, 1/2 and 1; capped at 1.5.
    trainer, sampler = [math.log(2) - 1, -2.0, -3.0], [-1.0, math.log(2) - 2, -3.0]
    capped = importance(trainer, sampler, 1.5)
    assert capped.ratios.tolist() == pytest.approx([2.0, 0.5, 1.0]) and capped.ratios[2] == 1.0
    assert capped.weights.tolist() == pytest.approx([1.5, 0.5, 1.0]) and capped.weights[0] == 1.5
    assert capped.sums().metrics() == pytest.approx(
        {
            "importance_mean": 3.5 / 3,
            "importance_max": 2.0,
            "importance_capped": 1 / 3,
            "importance_ess": 3.0**2 / (3 * (2.25 + 0.25 + 1)),
        }
    )
    parts = [importance(trainer[part], sampler[part], 1.5).sums() for part in (slice(0, 2), slice(2, 3))]
    assert parts[0].merged(parts[1]) == capped.sums()
    free = importance(trainer, sampler, None)
    assert free.weights.tolist() == [1.0] * 3
    assert free.sums().metrics()["importance_ess"] == pytest.approx(3.5**2 / (3 * (4 + 0.25 + 1)))
    assert free.sums().metrics()["importance_capped"] == 0.0


def test_far_apart_log_probabilities_stay_finite() -> None:
    far = importance([0.0, -2000.0], [-2000.0, 0.0], 2.0)
    assert far.weights[0] == 2.0 and 0 < far.weights[1] < 1e-8
    assert all(map(math.isfinite, far.sums().metrics().values()))


def test_the_same_log_probabilities_weigh_one() -> None:
    same = importance([-0.1, -7.3], [-0.1, -7.3], 1.0)
    assert same.weights.tolist() == [1.0, 1.0] and same.sums().metrics()["importance_ess"] == 1.0
