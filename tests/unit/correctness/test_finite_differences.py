"""The gradient of every loss with respect to the logits or scores below it, against central differences (float64)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cai_dist.losses.dpo import dpo_loss
from cai_dist.losses.language import language_loss
from cai_dist.losses.policy import PolicyObjective, policy_loss
from cai_dist.losses.preference import soft_preference_loss
from cai_dist.losses.value import value_loss

N, V = 8, 5
"""Tokens of all sequences together, and words."""
STEP = 1e-6


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


IDS = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([False, True, True, True, False, True, True, False])
LOGITS, REFERENCE, ADVANTAGES = draw(N, V, seed=1), draw(N, V, seed=2), draw(N, seed=3)
WEIGHTS = draw(N, seed=4).abs() + 0.5
# Well inside or well outside the interval of the ratio, so that no kink lies within a step. The last two of the mask: a
# bad token with a ratio above 1.5, where the dual clip counts, a good one between 1.2 and 1.4, where the upper does.
OFFSETS = torch.tensor([0.05, -0.05, 0.6, -0.6, 0.6, 0.6, 0.3, 0.6], dtype=torch.float64)


def logprobs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1)[torch.arange(N), IDS]


def entropy(logits: Tensor) -> Tensor:
    logp = torch.log_softmax(logits, -1)
    return -(logp.exp() * logp).sum(-1)


OLD = logprobs(LOGITS) - OFFSETS


def policy(**objective: object) -> Callable[[Tensor], Tensor]:
    def loss(logits: Tensor) -> Tensor:
        return policy_loss(
            logprobs(logits), OLD, ADVANTAGES, WEIGHTS, MASK, 5.0,
            PolicyObjective(0.2, **objective),  # type: ignore[arg-type]
            ref_logprobs=logprobs(REFERENCE), kl_coefficient=0.3, entropy=entropy(logits),
        )[0]  # fmt: skip

    return loss


def value(values: Tensor) -> Tensor:
    return value_loss(values, draw(N, seed=5) - OFFSETS, draw(N, seed=6), MASK, 0.2, 5.0)[0]


def preference(scores: Tensor) -> Tensor:
    valid = torch.tensor([True, True, False, True])
    return soft_preference_loss(scores[:4], scores[4:], torch.sigmoid(draw(4, seed=7)), 3.0, valid)[0]


def language(logits: Tensor) -> Tensor:
    return language_loss(logprobs(logits), WEIGHTS * MASK, 4.0)[0]


def dpo(kind: str) -> Callable[[Tensor], Tensor]:
    def loss(logprobs_of_pairs: Tensor) -> Tensor:
        valid, reference = torch.tensor([True, True, False, True]), draw(8, seed=10)
        return dpo_loss(
            logprobs_of_pairs[:4], logprobs_of_pairs[4:], reference[:4], reference[4:],
            torch.sigmoid(draw(4, seed=7)), 0.3, 3.0, valid, kind=kind,  # type: ignore[arg-type]
        )[0]  # fmt: skip

    return loss


CASES: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "language": (language, LOGITS),
    "preference": (preference, draw(8, seed=8)),
    "value": (value, draw(N, seed=5)),
    "dpo": (dpo("dpo"), draw(8, seed=9)),
    "ipo": (dpo("ipo"), draw(8, seed=9)),
    "policy": (policy(), LOGITS),
    "policy, asymmetric": (policy(clip_high=0.4), LOGITS),
    "policy, dual clip": (policy(dual_clip=1.5), LOGITS),
    "policy, k1": (policy(kl="k1"), LOGITS),
    "policy, k2": (policy(kl="k2"), LOGITS),
    "policy, k3": (policy(kl="k3"), LOGITS),
    "policy, entropy": (policy(entropy=0.2), LOGITS),
    "policy, everything": (policy(clip_high=0.4, dual_clip=1.5, kl="k3", entropy=0.2), LOGITS),
}


def central_differences(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """(f(x + h) - f(x - h)) / 2h, one coordinate at a time."""
    gradient = torch.zeros_like(point)
    for index in range(point.numel()):
        step = torch.zeros_like(point)
        step.view(-1)[index] = STEP
        gradient.view(-1)[index] = (function(point + step) - function(point - step)) / (2 * STEP)
    return gradient


@pytest.mark.parametrize("name", list(CASES))
def test_gradients(name: str) -> None:
    function, start = CASES[name]
    point = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(point), point)
    torch.testing.assert_close(gradient, central_differences(function, start), rtol=1e-6, atol=1e-9)
    assert gradient.abs().max() > 1e-2


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("policy, ")])
def test_each_option_of_the_policy_loss_is_met(name: str) -> None:
    """Its gradient is another than the plain loss's: the comparison above is not one of two equal numbers."""
    gradients = []
    for function, start in (CASES[name], CASES["policy"]):
        point = start.clone().requires_grad_()
        gradients += torch.autograd.grad(function(point), point)
    assert (gradients[0] - gradients[1]).abs().max() > 1e-2


def test_what_the_mask_leaves_out_has_no_gradient() -> None:
    for name in ("language", "value", "policy, everything"):
        function, start = CASES[name]
        point = start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(point), point)
        assert gradient[~MASK].abs().max() == 0.0, name
        assert gradient[MASK].abs().amax(-1).max() > 0.0
