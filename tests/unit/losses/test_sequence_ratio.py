"""Row 4 for a ratio per sequence (GSPO, 2507.18071): the loss and its gradient against sums written out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cai_dist.losses.policy import PolicyObjective, policy_loss, sequence_means

OBJECTIVE = PolicyObjective(clip=0.1, clip_high=0.2, ratio="sequence")
PROMPT = 2
"""Tokens of each sequence before its response."""


def brute_force(log_ratios: list[list[float]], advantages: list[float], low: float, high: float) -> float:
    """Equation 5 with the ratio of equation 7, response by response, in Python floats: minus the mean over them."""
    total = 0.0
    for row, advantage in zip(log_ratios, advantages, strict=True):
        ratio = math.prod(math.exp(x) for x in row) ** (1 / len(row))
        total += min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return -total / len(log_ratios)


def flat(log_ratios: list[list[float]], advantages: list[float]) -> dict[str, Any]:
    """The same as the loss takes it: prompts before the responses, NaN where nothing may be read."""
    nan = [math.nan] * PROMPT
    old, new, gains, weights, mask = [], [], [], [], []
    for row, advantage in zip(log_ratios, advantages, strict=True):
        old += [*nan, *([-1.0] * len(row))]
        new += [*nan, *(-1.0 + x for x in row)]
        gains += [*nan, *([advantage] * len(row))]
        weights += [*nan, *([1 / len(row)] * len(row))]
        mask += [False] * PROMPT + [True] * len(row)

    def tensor(numbers: list[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64)

    return {
        "logprobs": tensor(new).requires_grad_(),
        "old_logprobs": tensor(old),
        "advantages": tensor(gains),
        "weights": tensor(weights),
        "mask": torch.tensor(mask),
        "lengths": torch.tensor([PROMPT + len(row) for row in log_ratios]),
    }


def loss_of(parts: dict[str, Any], denominator: float) -> tuple[Tensor, dict[str, Tensor]]:
    return policy_loss(denominator=denominator, objective=OBJECTIVE, **parts)


ROWS = st.lists(st.tuples(st.lists(st.floats(-1, 1), min_size=1, max_size=6), st.floats(-3, 3)), min_size=1, max_size=5)


@settings(max_examples=80)
@given(ROWS)
def test_the_loss_is_the_mean_over_responses_by_brute_force(rows: list[tuple[list[float], float]]) -> None:
    log_ratios, advantages = [row for row, _ in rows], [advantage for _, advantage in rows]
    loss, metrics = loss_of(flat(log_ratios, advantages), len(rows))
    assert loss.item() == pytest.approx(brute_force(log_ratios, advantages, 0.1, 0.2), abs=1e-12)
    ratios = [math.exp(sum(row) / len(row)) for row in log_ratios]
    assert metrics["ratio"].item() == pytest.approx(
        sum(r * len(row) for r, row in zip(ratios, log_ratios, strict=True))
    )


@settings(max_examples=40)
@given(ROWS)
def test_the_gradient_is_that_of_finite_differences(rows: list[tuple[list[float], float]]) -> None:
    log_ratios, advantages = [row for row, _ in rows], [advantage for _, advantage in rows]
    for row in log_ratios:  # a corner of the clip has no derivative
        mean = math.exp(sum(row) / len(row))
        if min(abs(mean - 0.9), abs(mean - 1.2)) < 1e-4:
            return
    parts = flat(log_ratios, advantages)
    loss_of(parts, len(rows))[0].backward()
    found = parts["logprobs"].grad[parts["mask"]].tolist()
    expected, step = [], 1e-6
    for i, row in enumerate(log_ratios):
        for j in range(len(row)):
            up, down = ([list(r) for r in log_ratios] for _ in range(2))
            up[i][j] += step
            down[i][j] -= step
            sides = [brute_force(moved, advantages, 0.1, 0.2) for moved in (up, down)]
            expected.append((sides[0] - sides[1]) / (2 * step))
    assert found == pytest.approx(expected, abs=1e-7)
    assert not parts["logprobs"].grad[~parts["mask"]].any()


def test_sequences_do_not_see_each_other() -> None:
    """Cut into micro-batches, the parts add up to the whole."""
    log_ratios, advantages = [[0.3, -0.1], [0.2], [-0.4, 0.0, 0.1]], [1.0, -2.0, 0.5]
    whole = loss_of(flat(log_ratios, advantages), 3.0)[0]
    parts = [loss_of(flat([row], [a]), 3.0)[0] for row, a in zip(log_ratios, advantages, strict=True)]
    assert whole.item() == pytest.approx(sum(part.item() for part in parts))


def test_one_token_far_out_is_not_clipped_where_its_response_is_near() -> None:
    loss, metrics = loss_of(flat([[1.0, -1.0]], [2.0]), 1.0)
    assert loss.item() == pytest.approx(-2.0) and metrics["clip_fraction"].item() == 0.0
    cut = loss_of(flat([[0.5, 0.5]], [2.0]), 1.0)[1]
    assert cut["clip_fraction"].item() == 2.0  # both tokens of a response beyond 1 + clip_high


def test_a_stand_in_without_responses_adds_nothing() -> None:
    zero = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    mask, lengths = torch.zeros(2, dtype=torch.bool), torch.tensor([2])
    loss, _ = policy_loss(zero, zero.detach(), zero.detach(), zero.detach(), mask, 1.0, OBJECTIVE, lengths=lengths)
    loss.backward()
    assert loss.item() == 0.0 and zero.grad is not None and zero.grad.tolist() == [0.0, 0.0]


def test_what_is_missing_or_does_not_fit_is_refused() -> None:
    one = torch.ones(3)
    with pytest.raises(ValueError, match="lengths is missing"):
        policy_loss(one, one, one, one, one.bool(), 1.0, OBJECTIVE)
    with pytest.raises(ValueError, match="the sum of the lengths 2"):
        sequence_means(one, one.bool(), torch.tensor([2]))
