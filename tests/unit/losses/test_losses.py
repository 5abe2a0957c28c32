"""Each loss against values worked by hand, finite differences, and what must not matter (padding, splits, shapes)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cai_dist.losses.language import language_loss
from cai_dist.losses.preference import soft_preference_loss
from cai_dist.losses.value import value_loss

LN2 = math.log(2)


def tensor(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def mask(*bits: int) -> Tensor:
    return torch.tensor([bits], dtype=torch.bool)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# language


def test_language_loss_by_hand() -> None:
    # (1 x 2 + 0.5 x 4) / 4 = 1; the first token has no weight.
    loss, metrics = language_loss(tensor(-9, -2, -4), tensor(0, 1, 0.5), 4.0)
    assert loss.item() == pytest.approx(1.0)
    assert metrics["loss"].item() == pytest.approx(1.0)


def test_language_loss_ignores_what_has_no_weight() -> None:
    loss, _ = language_loss(tensor(-math.inf, -2, math.nan), tensor(0, 1, 0), 1.0)
    assert loss.item() == 2.0


# preference


def test_soft_preference_loss_by_hand() -> None:
    # d = ln 3: sigma(d) = 3/4, so with p = 0.8 the loss is -(0.8 ln(3/4) + 0.2 ln(1/4)); d = 0 costs ln 2 whatever p.
    loss, metrics = soft_preference_loss(
        torch.tensor([math.log(3), 1.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.8, 0.3]), 2.0
    )
    expected = (-(0.8 * math.log(0.75) + 0.2 * math.log(0.25)) + LN2) / 2
    assert loss.item() == pytest.approx(expected)
    assert metrics["accuracy"].item() == pytest.approx((1 + 0.5) / 2)  # right, and a tie
    assert metrics["margin"].item() == pytest.approx(math.log(3) / 2)
    assert metrics["score"].item() == pytest.approx((math.log(3) / 2 + 1) / 2)


def test_the_soft_label_is_the_minimum() -> None:
    # d/dd of the loss is sigma(d) - p: zero where sigma(d) = p, and pointing there from both sides.
    p = torch.tensor([0.8], dtype=torch.float64)
    for probability, sign in ((0.8, 0.0), (0.9, 1.0), (0.6, -1.0)):
        score = torch.logit(torch.tensor([probability], dtype=torch.float64)).requires_grad_()
        soft_preference_loss(score, torch.zeros_like(score), p, 1.0)[0].backward()
        assert score.grad is not None
        assert score.grad.item() == pytest.approx(probability - 0.8, abs=1e-12)
        assert math.copysign(1.0, score.grad.item()) == sign or sign == 0.0


def test_swapping_the_sides_mirrors_the_label() -> None:
    a, b, p = random(6, seed=0), random(6, seed=1), torch.rand(6, dtype=torch.float64)
    p[0], a[1] = 0.5, b[1]
    one, one_metrics = soft_preference_loss(a, b, p, 6.0)
    two, two_metrics = soft_preference_loss(b, a, 1 - p, 6.0)
    assert one.item() == pytest.approx(two.item())
    assert {k: v.item() for k, v in one_metrics.items()} == pytest.approx({k: v.item() for k, v in two_metrics.items()})


def test_large_scores_stay_finite() -> None:
    loss, _ = soft_preference_loss(torch.tensor([1e4]), torch.tensor([-1e4]), torch.tensor([0.0]), 1.0)
    assert loss.item() == pytest.approx(2e4)


def test_a_stand_in_pair_adds_nothing_but_keeps_the_graph() -> None:
    scores = torch.zeros(2, requires_grad=True)
    loss, metrics = soft_preference_loss(scores[:1], scores[1:], torch.tensor([0.5]), 4.0, torch.tensor([False]))
    loss.backward()
    assert loss.item() == 0.0 and scores.grad is not None and scores.grad.tolist() == [0.0, 0.0]
    assert all(value.item() == 0.0 for value in metrics.values())


def test_scores_of_shape_b_1_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scores_a \[3, 1\]"):
        soft_preference_loss(torch.zeros(3, 1), torch.zeros(3), torch.zeros(3), 3.0)
    with pytest.raises(ValueError, match="values"):
        value_loss(torch.zeros(3, 1), torch.zeros(3), torch.zeros(3), torch.ones(3).bool(), 0.2, 3.0)
    with pytest.raises(ValueError, match="weights"):
        language_loss(torch.zeros(1, 3), torch.zeros(3), 3.0)


# value


@pytest.mark.parametrize(
    ("value", "loss", "cut"),
    [
        (0.1, 0.405, 0.0),  # inside the clip: (0.1 - 1)^2 / 2
        (0.5, 0.32, 1.0),  # moved 0.5 from 0 towards 1, counts as 0.2: (0.2 - 1)^2 / 2
        (-0.5, 1.125, 0.0),  # moved away: the full error (-0.5 - 1)^2 / 2, not the clipped (-0.2 - 1)^2 / 2
    ],
)
def test_value_loss_by_hand(value: float, loss: float, cut: float) -> None:
    values = tensor(value).requires_grad_()
    result, metrics = value_loss(values, tensor(0.0), tensor(1.0), mask(1), 0.2, 1.0)
    result.backward()
    assert result.item() == pytest.approx(loss)
    assert metrics["clip_fraction"].item() == cut
    assert metrics["error"].item() == pytest.approx((value - 1) ** 2)
    assert metrics["mean"].item() == pytest.approx(value)
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(0.0 if cut else value - 1)


def test_no_value_inside_the_clip_counts_as_cut_off() -> None:
    draw = torch.Generator().manual_seed(0)
    old, values, returns = ((torch.rand(1000, generator=draw) - 0.5) * width for width in (0.19, 0.19, 4.0))
    assert (old + (values - old) != values).any(), "rounding is what this is about"
    metrics = value_loss(values, old, returns, torch.ones(1000, dtype=torch.bool), 0.2, 1.0)[1]
    assert metrics["clip_fraction"].item() == 0.0


# what must hold for all


def test_gradients_agree_with_finite_differences() -> None:
    # Old numbers lie 0.03 off (inside the clip) or 0.5 off (outside): no kink within the step of the differences.
    x = random(3, 4, seed=5).requires_grad_()
    old = x.detach() + torch.tensor([0.03, -0.03, 0.5, -0.5], dtype=torch.float64)
    other, bits = random(3, 4, seed=6), random(3, 4, seed=7) > -0.5
    check = torch.autograd.gradcheck
    assert check(lambda v: value_loss(v, old, other, bits, 0.2, 5.0)[0], x)
    assert check(lambda v: language_loss(v, bits.double(), 5.0)[0], x)
    assert check(lambda v: soft_preference_loss(v[:, 0], v[:, 1], torch.sigmoid(other[:, 0]), 3.0)[0], x)


@pytest.mark.parametrize("dirty", [(0, 1, 2), (0,), (1,), (2,)])
@pytest.mark.parametrize("junk", [100.0, math.nan, math.inf])
def test_padding_changes_neither_loss_nor_gradient(junk: float, dirty: tuple[int, ...]) -> None:
    bits = mask(0, 1, 1, 0)
    results = []
    for filling in (0.0, junk):
        x, old, other = (torch.where(bits, random(1, 4, seed=8 + n), filling if n in dirty else 0.0) for n in range(3))
        x.requires_grad_()
        loss, metrics = value_loss(x, old, other, bits, 0.2, 2.0)
        loss.backward()
        assert x.grad is not None
        results.append((loss.item(), x.grad.tolist(), {name: value.item() for name, value in metrics.items()}))
    assert results[0] == results[1]


def test_an_empty_mask_gives_zero_and_keeps_the_graph() -> None:
    x = random(1, 2, seed=11).requires_grad_()
    loss, _ = value_loss(x, tensor(0, 0), tensor(1, 1), mask(0, 0), 0.2, 7.0)
    loss.backward()
    assert loss.item() == 0.0 and x.grad is not None and x.grad.tolist() == [[0.0, 0.0]]
