"""Row 22 and the steps between a raw score and a reward, each by hand, their order, and their state."""

from __future__ import annotations

import math
from statistics import fmean, pstdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_dist.coordinator.score_shaping import MIN_DEVIATION, ShapedScores, shape_scores, without_length
from cai_dist.experience.moments import Moments
from tests.unit.coordinator.small_run import make_config

NOTHING = Moments()


def shaped(
    raw: list[float],
    lengths: list[int] | None = None,
    truncated: list[bool] | None = None,
    before: Moments = NOTHING,
    **settings_: object,
) -> ShapedScores:
    lengths, truncated = lengths or [1] * len(raw), truncated or [False] * len(raw)
    return shape_scores(raw, lengths, truncated, make_config(**settings_), before)


def test_nothing_happens_unless_asked() -> None:
    found = shaped([-9.0, 0.0, 9.0], [3, 1, 2], [True, False, True])
    assert found.scores.tolist() == [-9.0, 0.0, 9.0] and found.slope == 0.0
    assert (found.statistics.count, found.statistics.mean) == (3, 0.0)


def test_clip_by_hand() -> None:
    assert shaped([-9.0, 0.5, 9.0], score_clip=1.0).scores.tolist() == [-1.0, 0.5, 1.0]


def test_a_missing_end_costs() -> None:
    found = shaped([1.0, 0.0], truncated=[True, False], missing_eos_penalty=0.25)
    assert found.scores.tolist() == [0.75, 0.0]


def test_batch_normalisation_by_hand() -> None:
    # 1, 3, 5: mean 3, population deviation sqrt(8/3); what came before has no part in it.
    found = shaped([1.0, 3.0, 5.0], before=Moments(100, 50.0, 1.0), score_normalization="batch")
    assert found.scores.tolist() == pytest.approx([-2 / math.sqrt(8 / 3), 0.0, 2 / math.sqrt(8 / 3)])


def test_running_normalisation_counts_the_present_batch_first() -> None:
    # Before: 0 and 2. With 1 and 5: mean 2, squares 4 + 0 + 1 + 9 = 14, deviation sqrt(14/4).
    before = Moments.of([0.0, 2.0])
    found = shaped([1.0, 5.0], before=before, score_normalization="running")
    assert found.scores.tolist() == pytest.approx([-1 / math.sqrt(3.5), 3 / math.sqrt(3.5)])
    assert found.statistics == before.merged(Moments.of([1.0, 5.0]))
    first = shaped([1.0, 3.0], score_normalization="running")
    assert first.scores.tolist() == pytest.approx([-1.0, 1.0])


@pytest.mark.parametrize("kind", ["running", "batch"])
def test_equal_scores_do_not_explode(kind: str) -> None:
    assert shaped([0.1] * 3, score_normalization=kind).scores.tolist() == pytest.approx([0.0] * 3, abs=1e-9)
    tiny = shaped([0.0, 1e-9], score_normalization=kind).scores
    assert tiny.abs().max() <= 1e-9 / MIN_DEVIATION


@settings(max_examples=80)
@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 40)), min_size=1, max_size=12), st.floats(-1, 1))
def test_residual_scores_do_not_depend_on_length(samples: list[tuple[float, int]], slope: float) -> None:
    """Whatever the slope that was added, the residual is uncorrelated with length, and the mean stays."""
    lengths = torch.tensor([float(length) for _, length in samples], dtype=torch.float64)
    scores = torch.tensor([score for score, _ in samples], dtype=torch.float64)
    found, estimate = without_length(scores + slope * lengths, lengths)
    assert found.mean().item() == pytest.approx((scores + slope * lengths).mean().item(), abs=1e-9)
    assert ((lengths - lengths.mean()) * found).sum().item() == pytest.approx(0.0, abs=1e-6)
    plain, plain_estimate = without_length(scores, lengths)
    if lengths.std(correction=0) > 0:
        assert estimate == pytest.approx(plain_estimate + slope, abs=1e-9)
        torch.testing.assert_close(found, plain + slope * lengths.mean(), rtol=0, atol=1e-7)
    else:
        assert (estimate, plain.tolist()) == (0.0, scores.tolist())


def test_length_by_hand() -> None:
    # Score rises 1 a token with a wobble that has no slope: (1, 2, 3) + (0.5, -1, 0.5).
    found = shaped([1.5, 1.0, 3.5], [1, 2, 3], score_length="residual")
    assert found.slope == pytest.approx(1.0)
    assert found.scores.tolist() == pytest.approx([2.5, 1.0, 2.5])
    assert found.statistics.mean == pytest.approx(2.0)


def test_the_order_of_the_steps() -> None:
    """raw -> length -> normalisation -> clip -> penalty, all at once, each by another way."""
    raw, lengths, truncated = [1.5, 1.0, 3.5, 9.0], [1, 2, 3, 3], [False, False, True, False]
    found = shaped(
        raw, lengths, truncated,
        score_length="residual", score_normalization="batch", score_clip=1.0, missing_eos_penalty=0.5,
    )  # fmt: skip
    centre = fmean(lengths)
    slope = sum((n - centre) * s for n, s in zip(lengths, raw, strict=True)) / sum((n - centre) ** 2 for n in lengths)
    residual = [s - slope * (n - centre) for n, s in zip(lengths, raw, strict=True)]
    normal = [(s - fmean(residual)) / pstdev(residual) for s in residual]
    clipped = [min(max(s, -1.0), 1.0) for s in normal]
    assert clipped != normal, "the clip has something to do"
    assert found.scores.tolist() == pytest.approx([s - 0.5 * t for s, t in zip(clipped, truncated, strict=True)])
    assert (found.statistics.mean, found.statistics.deviation) == pytest.approx((fmean(residual), pstdev(residual)))


@pytest.mark.parametrize("kind", ["none", "running", "batch"])
def test_a_score_of_zero_is_a_score(kind: str) -> None:
    """Beside 2 and 4 a 0.0 is the lowest of three, not a missing one."""
    found = shaped([0.0, 2.0, 4.0], score_normalization=kind)
    assert found.statistics.count == 3 and found.statistics.mean == pytest.approx(2.0)
    wanted = [0.0, 2.0, 4.0] if kind == "none" else [-math.sqrt(1.5), 0.0, math.sqrt(1.5)]
    assert found.scores.tolist() == pytest.approx(wanted)
