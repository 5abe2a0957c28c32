"""Row 11: estimators against the exact KL on a vocabulary of four tokens; row 12: the controller's state."""

from __future__ import annotations

import json
import math

import pytest
import torch

from cai_dist.losses.kl import AdaptiveKl, FixedKl, controller_from_dict, k1, k2, k3, make_controller

LOGITS = torch.tensor([0.3, -0.7, 1.1, 0.0], dtype=torch.float64)
REFERENCE = torch.log_softmax(torch.tensor([0.0, 0.5, 0.4, -1.0], dtype=torch.float64), dim=-1)


def exact_kl(logits: torch.Tensor) -> torch.Tensor:
    logp = torch.log_softmax(logits, dim=-1)
    return (logp.exp() * (logp - REFERENCE)).sum()


def test_k1_and_k3_are_unbiased() -> None:
    logp = torch.log_softmax(LOGITS, dim=-1)
    exact = exact_kl(LOGITS).item()
    assert exact > 0.1
    # The expectation over all four tokens, not a sample of it.
    for estimator in (k1, k3):
        assert (logp.exp() * estimator(logp - REFERENCE)).sum().item() == pytest.approx(exact)


def test_k2_and_k3_are_never_negative_and_k2_is_right_nearby() -> None:
    log_ratio = torch.linspace(-3, 3, 61, dtype=torch.float64)
    assert (k2(log_ratio) >= 0).all() and (k3(log_ratio) >= 0).all()
    near = torch.log_softmax(REFERENCE + 0.01 * LOGITS, dim=-1)
    exact = (near.exp() * (near - REFERENCE)).sum().item()
    assert (near.exp() * k2(near - REFERENCE)).sum().item() == pytest.approx(exact, rel=0.02)


def test_k3_by_hand() -> None:
    # p twice as likely as q: 1/2 - 1 - ln(1/2).
    assert k3(torch.tensor(math.log(2))).item() == pytest.approx(-0.5 + math.log(2))


def test_k1_as_a_reward_gives_the_gradient_of_the_kl() -> None:
    logits = LOGITS.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(exact_kl(logits), logits)

    def score_function(estimator) -> torch.Tensor:
        logp = torch.log_softmax(logits, dim=-1)
        reward = estimator(logp - REFERENCE).detach()
        (gradient,) = torch.autograd.grad((logp.exp().detach() * logp * reward).sum(), logits)
        return gradient

    torch.testing.assert_close(score_function(k1), wanted)
    assert (score_function(k3) - wanted).abs().max() > 0.01


def test_adaptive_controller_by_hand() -> None:
    start = AdaptiveKl(0.1, target=6.0, horizon=10_000)
    # KL 6.6 is 10% over: x (1 + 0.1 x 256 / 10000).
    assert start.updated(6.6, 256).coefficient == pytest.approx(0.1 * (1 + 0.1 * 256 / 10_000))
    # Far over or under: the error is clipped to 0.2.
    assert start.updated(60.0, 256).coefficient == pytest.approx(0.1 * (1 + 0.2 * 256 / 10_000))
    assert start.updated(-60.0, 256).coefficient == pytest.approx(0.1 * (1 - 0.2 * 256 / 10_000))
    assert start.updated(6.0, 256) == start
    assert start.updated(0.0, 10**9).coefficient > 0


def test_fixed_controller_does_not_move() -> None:
    assert FixedKl(0.05).updated(100.0, 64) == FixedKl(0.05)


def test_state_survives_json_exactly() -> None:
    moved = make_controller(0.1, 6.0, 10_000).updated(9.0, 77)
    assert isinstance(moved, AdaptiveKl)
    for controller in (moved, make_controller(0.05, None, 1)):
        assert controller_from_dict(json.loads(json.dumps(controller.to_dict()))) == controller
    with pytest.raises(ValueError, match="thermostat"):
        controller_from_dict({"kind": "thermostat"})
