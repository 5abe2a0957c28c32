"""The margin of the soft-label loss and the temperature of a finished model."""

from __future__ import annotations

import math
import random

import pytest
import torch

from cai_dist.losses.calibration import expected_calibration_error
from cai_dist.losses.preference import soft_preference_loss
from cai_dist.losses.temperature import COLDEST, HOTTEST, fit_temperature, sigmoid


def loss_of(difference: float, p: float, margin: float) -> float:
    zero = torch.zeros(1, dtype=torch.float64)
    labels = torch.tensor([p], dtype=torch.float64)
    return soft_preference_loss(zero + difference, zero, labels, 1.0, margin=margin)[0].item()


def test_the_margin_by_hand() -> None:
    # p = 0.9, margin 2: certainty 0.8, so the difference 3 counts as 3 - 1.6 = 1.4.
    expected = -(0.9 * math.log(1 / (1 + math.exp(-1.4))) + 0.1 * math.log(1 / (1 + math.exp(1.4))))
    assert loss_of(3.0, 0.9, 2.0) == pytest.approx(expected, rel=1e-12)
    # The other answer is the better one: the same, mirrored.
    assert loss_of(-3.0, 0.1, 2.0) == pytest.approx(expected, rel=1e-12)
    # A label of one half knows no better answer: no margin.
    assert loss_of(3.0, 0.5, 2.0) == loss_of(3.0, 0.5, 0.0)


def test_the_loss_is_least_beyond_the_margin() -> None:
    for p in (0.2, 0.9):
        best = math.log(p / (1 - p)) + 1.5 * (2 * p - 1)
        score = torch.tensor([best], dtype=torch.float64, requires_grad=True)
        labels = torch.tensor([p], dtype=torch.float64)
        soft_preference_loss(score, torch.zeros_like(score), labels, 1.0, margin=1.5)[0].backward()
        assert score.grad is not None and score.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_without_a_margin_nothing_changes_by_a_bit() -> None:
    torch.manual_seed(0)
    a, b, p = torch.randn(9), torch.randn(9), torch.rand(9)
    assert torch.equal(soft_preference_loss(a, b, p, 3.0)[0], soft_preference_loss(a, b, p, 3.0, margin=0.0)[0])


def test_the_metrics_are_those_of_the_scores_themselves() -> None:
    a, b, p = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.0])
    _, plain = soft_preference_loss(a, b, p, 2.0)
    _, wide = soft_preference_loss(a, b, p, 2.0, margin=5.0)
    assert {k: wide[k].item() for k in ("accuracy", "margin", "score")} == {
        "accuracy": 1.0,
        "margin": 0.75,
        "score": 0.375,
    }
    assert wide["loss"] > plain["loss"]


def test_the_temperature_by_hand() -> None:
    # Margins +-2 that are right three times in four: sigma(2 / T) = 3/4 for T = 2 / ln 3.
    assert fit_temperature([2.0, 2.0, 2.0, -2.0], [1.0, 1.0, 1.0, 1.0]) == pytest.approx(2 / math.log(3), rel=1e-9)
    # Soft labels: sigma(1 / T) = 0.6.
    assert fit_temperature([1.0, -1.0], [0.6, 0.4]) == pytest.approx(1 / math.log(0.6 / 0.4), rel=1e-9)


def test_the_temperature_of_margins_that_are_too_wide_is_found_again() -> None:
    rng = random.Random(0)
    logits = [rng.gauss(0, 2) for _ in range(4000)]
    labels = [float(rng.random() < sigmoid(x)) for x in logits]
    wide = [3 * x for x in logits]
    t = fit_temperature(wide, labels)
    assert t == pytest.approx(3.0, rel=0.1)
    before = expected_calibration_error([sigmoid(x) for x in wide], labels)
    after = expected_calibration_error([sigmoid(x / t) for x in wide], labels)
    assert after < 0.03 < before


def test_where_no_temperature_is_best_the_fit_stops_at_its_bounds() -> None:
    assert fit_temperature([1.0, 2.0], [1.0, 1.0]) == pytest.approx(COLDEST, rel=1e-6)
    assert fit_temperature([1.0, -2.0], [0.0, 1.0]) == pytest.approx(HOTTEST, rel=1e-6)
    with pytest.raises(ValueError, match="0 margins and 1 labels"):
        fit_temperature([], [1.0])


def test_sigmoid_far_out() -> None:
    assert (sigmoid(0.0), sigmoid(1e4), sigmoid(-1e4)) == (0.5, 1.0, 0.0)
    assert sigmoid(-3.0) == pytest.approx(1 - sigmoid(3.0), rel=1e-12)


def test_scores_that_say_nothing_have_no_temperature() -> None:
    assert fit_temperature([0.0, 0.0], [1.0, 0.0]) == 1.0
