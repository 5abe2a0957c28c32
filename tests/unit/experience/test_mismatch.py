"""Distances between sampler and trainer by hand, fresh and stale tokens apart."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cai_dist.experience import mismatch
from cai_dist.experience.mismatch import Distances


def distances(trainer: list[float], sampler: list[float], versions: list[int], version: int) -> Distances:
    return mismatch.distances(np.float32(trainer), np.float32(sampler), np.int32(versions), version)


def test_by_hand() -> None:
    # Of version 5: log ratios 0.5 and -1; of older ones: log 2 and 0.
    trainer, sampler = [-1.0, -3.0, -1.0, -2.0], [-1.0 - math.log(2), -3.5, 0.0, -2.0]
    versions = [4, 5, 5, 3]
    halves = distances(trainer[:3], sampler[:3], versions[:3], 5).merged(distances([-2.0], [-2.0], [3], 5))
    assert halves == distances(trainer, sampler, versions, 5)
    assert halves.metrics() == pytest.approx(
        {
            "mismatch_mean": 0.75,
            "mismatch_max": 1.0,
            "mismatch_kl": ((math.exp(0.5) - 1.5) + (math.exp(-1) - 1 + 1)) / 2,
            "offpolicy_mean": math.log(2) / 2,
            "offpolicy_max": math.log(2),
            "offpolicy_kl": (2 - 1 - math.log(2)) / 2,
            "stale_tokens": 0.5,
        }
    )


def test_what_there_is_no_token_for_is_left_out() -> None:
    assert set(distances([-1.0], [-1.0], [5], 5).metrics()) == {
        "mismatch_mean",
        "mismatch_max",
        "mismatch_kl",
    }
    assert "mismatch_mean" not in distances([-1.0], [-1.0], [4], 5).metrics()


def test_far_apart_stays_finite() -> None:
    found = distances([0.0, -2000.0], [-2000.0, 0.0], [5, 5], 5).metrics()
    assert all(map(math.isfinite, found.values()))
