"""Row 11: estimators and their gradients against the exact KL on a vocabulary of four tokens; row 12: the controller's
state."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch

from cai_dist.losses.kl import ESTIMATORS, AdaptiveKl, FixedKl, controller_from_dict, k1, k2, k3, make_controller
from cai_dist.losses.policy import PolicyObjective, policy_loss

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


def test_k3_has_its_own_slope_in_single_precision_too() -> None:
    """1 - exp(-x), the slope of its tangent below x = -20."""
    log_ratio = torch.tensor([25.0, 0.5, 0.0, -3.0, -20.0, -25.0], requires_grad=True)
    (slope,) = torch.autograd.grad(k3(log_ratio).sum(), log_ratio)
    expected = [1 - math.exp(-max(x, -20.0)) for x in (25.0, 0.5, 0.0, -3.0, -20.0, -25.0)]
    assert slope.tolist() == pytest.approx(expected, rel=1e-6)
    assert k3(torch.tensor(-21.0)).item() == pytest.approx(2 * math.exp(20) - 22)


def reverse_kl(logits: torch.Tensor) -> torch.Tensor:
    return (REFERENCE.exp() * (REFERENCE - torch.log_softmax(logits, dim=-1))).sum()


def gradient(of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    logits = LOGITS.clone().requires_grad_()
    (found,) = torch.autograd.grad(of(logits), logits)
    return found


def as_reward(estimator: str) -> torch.Tensor:
    """Expected gradient of REINFORCE on the estimator, held fixed, over all four tokens."""

    def objective(logits: torch.Tensor) -> torch.Tensor:
        logp = torch.log_softmax(logits, dim=-1)
        return (logp.exp().detach() * logp * ESTIMATORS[estimator](logp - REFERENCE).detach()).sum()

    return gradient(objective)


def in_loss(estimator: str) -> torch.Tensor:
    """Expected gradient of the KL term of the real policy loss, every token weighted by its probability."""

    def objective(logits: torch.Tensor) -> torch.Tensor:
        logp = torch.log_softmax(logits, dim=-1)
        zero = torch.zeros(4, dtype=torch.float64)
        loss, _ = policy_loss(
            logp, logp.detach(), zero, logp.exp(), zero == 0, 1.0, PolicyObjective(0.2, kl=estimator),
            ref_logprobs=REFERENCE, kl_coefficient=1.0,
        )  # fmt: skip
        return loss

    return gradient(objective)


def test_as_a_reward_only_k1_has_the_gradient_of_the_kl() -> None:
    wanted = gradient(exact_kl)
    torch.testing.assert_close(as_reward("k1"), wanted)
    for other in ("k2", "k3"):
        assert (as_reward(other) - wanted).abs().max() > 0.01


def test_in_the_loss_only_k2_has_the_gradient_of_the_kl() -> None:
    wanted = gradient(exact_kl)
    torch.testing.assert_close(in_loss("k2"), wanted)
    torch.testing.assert_close(in_loss("k1"), torch.zeros_like(wanted))
    torch.testing.assert_close(in_loss("k3"), gradient(reverse_kl))
    assert (gradient(reverse_kl) - wanted).abs().max() > 0.01


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
