"""Rows 4, 6, 8 and 11 for the policy's loss: every option by hand, by finite differences and split in every way."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cai_dist.losses.policy import PolicyObjective, policy_loss, token_means

KINDS: tuple[Literal["k1", "k2", "k3"], ...] = ("k1", "k2", "k3")


def tensor(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain(
    logprobs: Tensor, old: Tensor, advantages: Tensor, clip: float = 0.2, **objective: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """All tokens valid, weight and denominator 1."""
    ones = torch.ones_like(advantages)
    return policy_loss(logprobs, old, advantages, ones, ones.bool(), 1.0, PolicyObjective(clip, **objective))


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "cut"),
    [
        (1.5, 1.0, 1.2, 1.0),  # better and already 1.5 x as likely: capped at 1 + clip
        (0.5, 1.0, 0.5, 0.0),  # better but less likely: full pull
        (1.5, -1.0, -1.5, 0.0),  # worse and more likely: full push
        (0.5, -1.0, -0.8, 1.0),  # worse and already half as likely: capped at 1 - clip
        (1.1, 1.0, 1.1, 0.0),  # inside the interval
    ],
)
def test_every_corner_of_the_clip(ratio: float, advantage: float, objective: float, cut: float) -> None:
    old = tensor(-1.0)
    new = (old + math.log(ratio)).requires_grad_()
    loss, metrics = plain(new, old, tensor(advantage))
    loss.backward()
    assert loss.item() == pytest.approx(-objective)
    assert metrics["clip_fraction"].item() == cut
    assert metrics["ratio"].item() == pytest.approx(ratio)
    assert metrics["ratio_deviation"].item() == pytest.approx((ratio - 1) ** 2)
    # KL(old || new) sampled from old, k3: ratio - 1 - ln ratio.
    assert metrics["approx_kl"].item() == pytest.approx(ratio - 1 - math.log(ratio))
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(0.0 if cut else -advantage * ratio)


def test_the_upper_side_of_the_clip_has_a_width_of_its_own() -> None:
    old = tensor(0.0, 0.0, 0.0)
    new = tensor(1.4, 1.6, 0.5).log().requires_grad_()
    loss, metrics = plain(new, old, tensor(1.0, 1.0, -1.0), clip_high=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(-(1.4 + 1.5 - 0.8))  # the lower side still ends at 1 - 0.2
    assert metrics["clip_fraction"].item() == 2.0
    assert new.grad is not None and new.grad.tolist() == pytest.approx([-1.4, 0.0, 0.0])


def test_dual_clip_bounds_the_push_of_a_bad_token_alone() -> None:
    # Ratio 5: J = -5 without the bound, -3 with it (and no gradient); ratio 2 is within; a good token never bounded.
    new = tensor(5.0, 2.0, 0.1).log().requires_grad_()
    loss, metrics = plain(new, tensor(0.0, 0.0, 0.0), tensor(-1.0, -1.0, 1.0), dual_clip=3.0)
    loss.backward()
    assert loss.item() == pytest.approx(3.0 + 2.0 - 0.1)
    assert metrics["clip_fraction"].item() == 1.0
    assert new.grad is not None and new.grad.tolist() == pytest.approx([0.0, 2.0, -0.1])


@pytest.mark.parametrize(("kind", "value", "slope"), [("k1", 0.5, 1.0), ("k2", 0.125, 0.5)])
def test_kl_terms_by_hand(kind: Any, value: float, slope: float) -> None:
    """log ratio 0.5 at a coefficient of 0.1, advantage 0: the KL term alone."""
    new, zero, one = tensor(-1.0).requires_grad_(), tensor(0.0), tensor(1.0)
    loss, metrics = policy_loss(
        new, tensor(-1.0), zero, one, one.bool(), 1.0, PolicyObjective(0.2, kl=kind),
        ref_logprobs=tensor(-1.5), kl_coefficient=0.1,
    )  # fmt: skip
    loss.backward()
    assert loss.item() == pytest.approx(0.1 * value) and metrics["kl"].item() == pytest.approx(value)
    assert new.grad is not None and new.grad.item() == pytest.approx(0.1 * slope)


@pytest.mark.parametrize(("kind", "near", "far"), [("k1", 1.0, 1.0), ("k2", 25.0, -25.0), ("k3", 1.0, -math.exp(20))])
def test_a_kl_term_pulls_back_however_far_the_policy_is(kind: Any, near: float, far: float) -> None:
    """The slope of the KL term where the log-ratio to the reference is 25 and -25; k3 is a line below -20."""
    for log_ratio, slope in ((25.0, near), (-25.0, far)):
        new, zero, one = tensor(-1.0).requires_grad_(), tensor(0.0), tensor(1.0)
        loss, metrics = policy_loss(
            new, tensor(-1.0), zero, one, one.bool(), 1.0, PolicyObjective(0.2, kl=kind),
            ref_logprobs=tensor(-1.0 - log_ratio), kl_coefficient=1.0,
        )  # fmt: skip
        loss.backward()
        assert new.grad is not None and new.grad.item() == pytest.approx(slope)
        assert math.isfinite(metrics["kl"].item())


def test_entropy_is_rewarded() -> None:
    entropy = tensor(2.0, 3.0).requires_grad_()
    zero, weights = tensor(0.0, 0.0), tensor(1.0, 0.5)
    loss, metrics = policy_loss(
        zero, zero, zero, weights, weights.bool(), 2.0, PolicyObjective(0.2, entropy=0.01), entropy=entropy
    )
    loss.backward()
    assert loss.item() == pytest.approx(-0.01 * (2.0 + 0.5 * 3.0) / 2)
    assert metrics["entropy"].item() == 5.0
    assert entropy.grad is not None and entropy.grad.tolist() == pytest.approx([-0.005, -0.0025])


def test_weights_scale_a_token_and_are_not_learned() -> None:
    logprobs = random(3, seed=0).requires_grad_()
    weights = tensor(0.0, 0.5, 2.0).requires_grad_()
    advantages = tensor(1.0, 2.0, 3.0)
    loss, _ = policy_loss(
        logprobs, logprobs.detach(), advantages, weights, torch.ones(3).bool(), 4.0, PolicyObjective(0.2)
    )
    loss.backward()
    assert loss.item() == pytest.approx(-(0.0 + 1.0 + 6.0) / 4)
    assert logprobs.grad is not None and logprobs.grad.tolist() == pytest.approx([0.0, -0.25, -1.5])
    assert weights.grad is None


def test_a_huge_ratio_stays_finite() -> None:
    new = tensor(0.0, 0.0).requires_grad_()
    one = torch.ones(2, dtype=torch.float64)
    for kind in KINDS:
        loss, _ = policy_loss(
            new, tensor(-2000.0, 2000.0), tensor(-1.0, 1.0), one, one.bool(), 2.0, PolicyObjective(0.2, kl=kind),
            ref_logprobs=tensor(2000.0, -2000.0), kl_coefficient=0.1,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(loss, new)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()


@pytest.mark.parametrize("beyond", [0.5, 30.0, 2000.0])
def test_a_bad_token_far_too_likely_is_still_pulled_back(beyond: float) -> None:
    # log(p / p_old) = 20 + beyond with a negative advantage: no clip applies, and a constant would have no gradient.
    new = tensor(20.0 + beyond).requires_grad_()
    loss, metrics = plain(new, tensor(0.0), tensor(-1.0))
    (gradient,) = torch.autograd.grad(loss, new)
    assert gradient.item() == pytest.approx(math.exp(20.0))
    assert loss.item() == pytest.approx(math.exp(20.0) * (1 + beyond)) and math.isfinite(metrics["approx_kl"].item())


def test_a_token_far_too_unlikely_has_the_ratio_that_it_has() -> None:
    new = tensor(-25.0).requires_grad_()
    loss, _ = plain(new, tensor(0.0), tensor(1.0))
    (gradient,) = torch.autograd.grad(loss, new)
    assert loss.item() == gradient.item() == pytest.approx(-math.exp(-25.0))


OBJECTIVES = [
    PolicyObjective(0.2),
    PolicyObjective(0.2, clip_high=0.28),
    PolicyObjective(0.2, dual_clip=3.0),
    *(PolicyObjective(0.2, kl=kind) for kind in KINDS),
    PolicyObjective(0.2, entropy=0.1),
    PolicyObjective(0.2, clip_high=0.28, dual_clip=3.0, kl="k3", entropy=0.1),
]


def ragged() -> dict[str, Tensor]:
    """3 samples of 2, 6 and 4 tokens, one after the other, with logits over a vocabulary of 5. Old numbers lie 0.03 off
    (inside every clip), 0.5 off (outside) or 2 off (beyond the dual clip): no kink is near."""
    offsets = tensor(0.03, -0.03, 0.5, -0.5, -2.0, 2.0).repeat(2)
    logits = random(12, 5, seed=1)
    tokens = torch.arange(12) % 5
    return {
        "logits": logits,
        "tokens": tokens,
        "old": torch.log_softmax(logits, -1)[torch.arange(12), tokens] + offsets,
        "ref": random(12, seed=2) - 1.5,
        "advantages": random(12, seed=3),
        "weights": random(12, seed=4).abs(),
        "mask": torch.arange(12) % 7 != 3,
    }


def loss_of(logits: Tensor, objective: PolicyObjective, denominator: float, rows: Tensor | None = None) -> Tensor:
    """The loss of the tokens in `rows` as a function of the logits, entropies included."""
    data = ragged()
    rows = torch.arange(12) if rows is None else rows
    logp = torch.log_softmax(logits[rows], -1)
    loss, _ = policy_loss(
        logp.gather(-1, data["tokens"][rows, None]).squeeze(-1),
        *(data[name][rows] for name in ("old", "advantages", "weights", "mask")),
        denominator,
        objective,
        ref_logprobs=data["ref"][rows],
        kl_coefficient=0.3,
        entropy=-(logp.exp() * logp).sum(-1),
    )
    return loss


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_gradients_agree_with_finite_differences(objective: PolicyObjective) -> None:
    logits = ragged()["logits"].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(x, objective, 5.0), logits)


@settings(max_examples=40)
@given(
    st.sampled_from(OBJECTIVES),
    st.lists(st.integers(0, 3), min_size=12, max_size=12),
    st.sampled_from([12.0, 3.0, 48.0]),
)
def test_no_split_changes_loss_or_gradient(objective: PolicyObjective, parts: list[int], denominator: float) -> None:
    """Tokens dealt to four micro-batches (or ranks) in any way, empty ones included: their sum is the whole."""
    whole, split = (ragged()["logits"].requires_grad_() for _ in range(2))
    one = loss_of(whole, objective, denominator)
    one.backward()
    many = torch.stack(
        [
            loss_of(split, objective, denominator, torch.tensor([i for i in range(12) if parts[i] == p]).long())
            for p in range(4)
        ]
    ).sum()
    many.backward()
    assert many.item() == pytest.approx(one.item())
    torch.testing.assert_close(split.grad, whole.grad)


@pytest.mark.parametrize("junk", [100.0, math.nan, math.inf])
@pytest.mark.parametrize("dirty", [*range(6), None])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_what_is_masked_is_never_read(objective: PolicyObjective, dirty: int | None, junk: float) -> None:
    bits = torch.tensor([False, True, True, False])
    results = []
    for filling in (0.0, junk):
        new, old, advantages, weights, ref, entropy = (
            torch.where(bits, random(4, seed=8 + n), filling if dirty in (n, None) else 0.0) for n in range(6)
        )
        new.requires_grad_(), entropy.requires_grad_()
        loss, metrics = policy_loss(
            new, old, advantages, weights, bits, 2.0, objective, ref_logprobs=ref, kl_coefficient=0.3, entropy=entropy
        )
        loss.backward()
        gradients = [x.grad.tolist() if x.grad is not None else None for x in (new, entropy)]
        results.append((loss.item(), gradients, {name: value.item() for name, value in metrics.items()}))
    assert results[0] == results[1]
    assert results[0][1][0][0] == results[0][1][0][3] == 0.0


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_an_empty_mask_gives_zero_and_keeps_the_graph(objective: PolicyObjective) -> None:
    x, zero = random(2, seed=11).requires_grad_(), tensor(0.0, 0.0)
    loss, metrics = policy_loss(
        x, zero, zero, zero, torch.tensor([False, False]), 7.0, objective, ref_logprobs=zero, entropy=zero
    )
    loss.backward()
    assert loss.item() == 0.0 and x.grad is not None and x.grad.tolist() == [0.0, 0.0]
    assert all(value.item() == 0.0 for value in metrics.values())


def test_metrics_are_means_over_tokens_whatever_the_loss_is_a_mean_over() -> None:
    data, logits = ragged(), ragged()["logits"]
    objective = OBJECTIVES[-1]
    logp = torch.log_softmax(logits, -1)
    means = []
    for weights, denominator in ((torch.ones(12).double(), 10.0), (torch.full((12,), 0.25).double(), 3.0)):
        _, sums = policy_loss(
            logp.gather(-1, data["tokens"][:, None]).squeeze(-1), data["old"], data["advantages"], weights,
            data["mask"], denominator, objective, ref_logprobs=data["ref"], entropy=-(logp.exp() * logp).sum(-1),
        )  # fmt: skip
        means.append(token_means({name: value.item() for name, value in sums.items()} | {"grad_norm": 3.0, "lr": 0.1}))
    ratio = (logp.gather(-1, data["tokens"][:, None]).squeeze(-1) - data["old"]).exp()[data["mask"]]
    assert means[0]["ratio"] == pytest.approx(ratio.mean().item())
    assert means[0].pop("loss") != pytest.approx(means[1].pop("loss"))
    assert means[0] == means[1]
    assert (means[0]["grad_norm"], means[0]["lr"]) == (3.0, 0.1) and "tokens" not in means[0]


def test_what_does_not_fit_is_refused() -> None:
    three, ones = torch.zeros(1, 3), torch.ones(1, 3)
    arguments = (three, three, three, ones, ones.bool(), 3.0)
    with pytest.raises(ValueError, match="advantages"):
        policy_loss(three, three, torch.zeros(1, 1), ones, ones.bool(), 3.0, PolicyObjective(0.2))
    with pytest.raises(ValueError, match="weights"):
        policy_loss(three, three, three, torch.ones(3), ones.bool(), 3.0, PolicyObjective(0.2))
    with pytest.raises(ValueError, match="ref_logprobs is missing: the objective has a KL term"):
        policy_loss(*arguments, PolicyObjective(0.2, kl="k2"))
    with pytest.raises(ValueError, match="ref_logprobs"):
        policy_loss(*arguments, PolicyObjective(0.2, kl="k2"), ref_logprobs=torch.zeros(3))
    with pytest.raises(ValueError, match="entropy is missing: the objective has an entropy bonus"):
        policy_loss(*arguments, PolicyObjective(0.2, entropy=0.1))
