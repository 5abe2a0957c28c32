"""The losses of direct preference optimisation: by hand, by finite differences, and what must not matter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cai_dist.losses.dpo import dpo_loss

LN2 = math.log(2)


def row(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def at(difference: Tensor, p: Tensor, beta: float, kind: str = "dpo") -> Tensor:
    """The loss where the difference of log-ratios is `difference`."""
    zero = torch.zeros_like(difference)
    return dpo_loss(difference, zero, zero, zero, p, beta, float(len(p)), kind=kind)[0]


def test_dpo_by_hand() -> None:
    # log-ratios ln 9 - 1 - (-1) = ln 9 and -2 + 2 = 0; beta 1/2: h = ln 3, sigma(h) = 3/4.
    logprobs_a, ref_a = row(math.log(9) - 1, -3.0), row(-1.0, -3.0)
    logprobs_b, ref_b = row(-2.0, -4.0), row(-2.0, -4.0)
    loss, metrics = dpo_loss(logprobs_a, logprobs_b, ref_a, ref_b, row(0.8, 0.3), 0.5, 2.0)
    assert loss.item() == pytest.approx((-(0.8 * math.log(0.75) + 0.2 * math.log(0.25)) + LN2) / 2)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "loss": loss.item(),
            "accuracy": (1 + 0.5) / 2,  # right, and a tie
            "margin": math.log(3) / 2,
            "reward_preferred": math.log(3) / 2,
            "reward_rejected": 0.0,
            "logprob_preferred": (math.log(9) - 1 - 4) / 2,  # A of the first pair, B of the second
        }
    )


def test_ipo_by_hand() -> None:
    # d = 3, beta = 1/4: the goals are +-2. 0.75 x (3 - 2)^2 + 0.25 x (3 + 2)^2 = 7.
    loss, metrics = dpo_loss(row(-1.0), row(-5.0), row(-3.0), row(-4.0), row(0.75), 0.25, 1.0, kind="ipo")
    assert loss.item() == pytest.approx(7.0)
    assert metrics["margin"].item() == pytest.approx(0.25 * 3)


def test_an_undecided_pair_has_no_preferred_side() -> None:
    _, metrics = dpo_loss(row(-1.0), row(-5.0), row(-3.0), row(-4.0), row(0.5), 0.5, 1.0)
    assert metrics["accuracy"].item() == 0.5 and metrics["margin"].item() == 0.0
    assert metrics["reward_preferred"].item() == metrics["reward_rejected"].item() == 0.5 * (2 - 1) / 2
    assert metrics["logprob_preferred"].item() == -3.0


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.8, 0.99])
def test_the_soft_label_is_the_minimum(p: float) -> None:
    # dpo: h = beta d = logit(p); ipo: d = (p - 1/2) / beta. The gradient is 0 there and points there from both sides.
    beta = 0.2
    goals = {"dpo": math.log(p / (1 - p)) / beta, "ipo": (p - 0.5) / beta}
    for kind, goal in goals.items():
        for off in (-0.5, 0.0, 0.5):
            difference = row(goal + off).requires_grad_()
            at(difference, row(p), beta, kind).backward()
            assert difference.grad is not None
            slope = difference.grad.item()
            assert slope == pytest.approx(0.0, abs=1e-12) if off == 0 else slope * off > 1e-5


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
def test_at_the_start_an_undecided_pair_teaches_nothing(kind: str) -> None:
    sides = [row(-7.0).requires_grad_(), row(-2.0).requires_grad_()]
    dpo_loss(*sides, row(-7.0), row(-2.0), row(0.5), 0.3, 1.0, kind=kind)[0].backward()
    assert [side.grad.tolist() for side in sides if side.grad is not None] == [[0.0], [0.0]]


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_swapping_the_sides_changes_no_bit(kind: str, dtype: torch.dtype) -> None:
    a, b, ref_a, ref_b = (10 * random(200, seed=n).to(dtype) for n in range(4))
    p = torch.rand(200, generator=torch.Generator().manual_seed(4)).to(dtype)
    p[:6] = torch.tensor([0.0, 1.0, 0.5, 1e-12, 1 - 1e-7, 0.1])
    b[6], ref_b[6] = a[6], ref_a[6]
    for i in range(200):  # one by one: in a sum the last bits drown
        one, two = ((x[i : i + 1] for x in sides) for sides in ((a, b, ref_a, ref_b, p), (b, a, ref_b, ref_a, 1 - p)))
        assert dpo_loss(*one, 0.1, 1.0, kind=kind)[0].item() == dpo_loss(*two, 0.1, 1.0, kind=kind)[0].item()
    valid = torch.arange(200) != 7
    one, one_metrics = dpo_loss(a, b, ref_a, ref_b, p, 0.1, 150.0, valid, kind=kind)
    two, two_metrics = dpo_loss(b, a, ref_b, ref_a, 1 - p, 0.1, 150.0, valid, kind=kind)
    assert one.item() == two.item()
    assert {k: v.item() for k, v in one_metrics.items()} == {k: v.item() for k, v in two_metrics.items()}


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
def test_gradients_agree_with_finite_differences(kind: str) -> None:
    a, b = random(5, seed=5).requires_grad_(), random(5, seed=6).requires_grad_()
    ref_a, ref_b, p = random(5, seed=7), random(5, seed=8), torch.sigmoid(random(5, seed=9))
    valid = torch.tensor([True, True, False, True, True])
    assert torch.autograd.gradcheck(lambda x, y: dpo_loss(x, y, ref_a, ref_b, p, 0.7, 3.0, valid, kind=kind)[0], (a, b))


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
def test_it_depends_on_the_log_ratios_alone(kind: str) -> None:
    a, b, ref_a, ref_b = (random(4, seed=n) for n in range(10, 14))
    p = torch.sigmoid(random(4, seed=14))
    one = dpo_loss(a, b, ref_a, ref_b, p, 0.3, 4.0, kind=kind)[0]
    # a conversation or an answer that is rarer by 5 nats for both models is no preference
    two = dpo_loss(a - 5, b - 2, ref_a - 5, ref_b - 2, p, 0.3, 4.0, kind=kind)[0]
    assert one.item() == pytest.approx(two.item(), rel=1e-12)


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
def test_a_stand_in_adds_nothing_but_keeps_the_graph(kind: str) -> None:
    a, b = row(-1.0, math.nan).requires_grad_(), row(-2.0, math.nan).requires_grad_()
    refs, p = row(-1.0, 0.0), row(0.9, 0.5)
    whole, metrics = dpo_loss(a, b, refs, refs, p, 0.3, 4.0, torch.tensor([True, False]), kind=kind)
    alone, _ = dpo_loss(a[:1], b[:1], refs[:1], refs[:1], p[:1], 0.3, 4.0, kind=kind)
    assert whole.item() == alone.item() and all(value.isfinite() for value in metrics.values())
    nothing, _ = dpo_loss(a[:1], b[:1], refs[:1], refs[:1], p[:1], 0.3, 4.0, torch.tensor([False]), kind=kind)
    nothing.backward()
    assert nothing.item() == 0.0 and a.grad is not None and a.grad.tolist() == [0.0, 0.0]


def test_far_from_the_reference_it_stays_finite() -> None:
    assert at(row(1e5), row(0.0), 1.0).item() == pytest.approx(1e5)
    assert at(row(1e5), row(1.0), 1.0).item() == 0.0


def test_the_denominator_is_the_callers() -> None:
    numbers = [random(3, seed=n) for n in range(4)]
    p = row(0.2, 0.6, 1.0)
    whole, metrics = dpo_loss(*numbers, p, 0.3, 3.0)
    parts = [dpo_loss(*(x[i : i + 1] for x in numbers), p[i : i + 1], 0.3, 3.0) for i in range(3)]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item())
    for name, value in metrics.items():
        assert sum(part[name].item() for _, part in parts) == pytest.approx(value.item()), name


def test_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ref_a \[3, 1\]"):
        dpo_loss(torch.zeros(3), torch.zeros(3), torch.zeros(3, 1), torch.zeros(3), torch.zeros(3), 0.1, 3.0)
