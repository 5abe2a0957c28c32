"""Rows 4, 20, 21, 23, 25 and 27: GAE against a quadratic reference, padding, other parties, truncation,
groups."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cai_dist.losses.advantages import (
    gae,
    group_centred,
    group_standardised,
    leave_one_out,
    returns_to_go,
)


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def reference_gae(rewards: list[float], values: list[float], gamma: float, lam: float, bootstrap: float) -> list[float]:
    """Equation 16 of 1506.02438 read literally: A_t = sum over l of (gamma lam)^l delta_(t+l). O(T^2)."""
    after = [*values[1:], bootstrap]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
    return [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, len(deltas))) for t in range(len(deltas))]


number = st.floats(-3, 3, allow_nan=False, width=32)
sample = st.lists(st.tuples(number, number, st.booleans()), min_size=1, max_size=8).filter(
    lambda tokens: any(valid for _, _, valid in tokens)
)


@settings(max_examples=80)
@given(
    st.lists(st.tuples(sample, number), min_size=1, max_size=4),
    st.sampled_from([1.0, 0.9]),
    st.sampled_from([0.0, 0.95, 1.0]),
    st.sampled_from([100.0, math.nan]),
)
def test_equals_the_reference_whatever_is_masked(
    samples: list[tuple[list[tuple[float, float, bool]], float]], gamma: float, lam: float, junk: float
) -> None:
    """Ragged rows, masks with holes (turns of the other party), junk in every masked place."""
    width = max(len(tokens) for tokens, _ in samples)
    rewards = torch.full((len(samples), width), junk, dtype=torch.float64)
    values, mask = rewards.clone(), torch.zeros(len(samples), width, dtype=torch.bool)
    for b, (tokens, _) in enumerate(samples):
        for t, (reward, value, valid) in enumerate(tokens):
            if valid:
                rewards[b, t], values[b, t], mask[b, t] = reward, value, True
    bootstrap = torch.tensor([last for _, last in samples], dtype=torch.float64)
    advantages, returns = gae(rewards, values, mask, gamma, lam, bootstrap)
    for b, (tokens, last) in enumerate(samples):
        valid = [(reward, value) for reward, value, ok in tokens if ok]
        expected = reference_gae([r for r, _ in valid], [v for _, v in valid], gamma, lam, last)
        assert advantages[b][mask[b]].tolist() == pytest.approx(expected, abs=1e-9)
        assert returns[b][mask[b]].tolist() == pytest.approx(
            [a + v for a, (_, v) in zip(expected, valid, strict=True)], abs=1e-9
        )
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()


def test_by_hand() -> None:
    # gamma 1/2, lambda 1/2. deltas: 1 + 2/2 - 1 = 1; 0 + 4/2 - 2 = 0; 3 + 0 - 4 = -1.
    # A_2 = -1; A_1 = 0 - 1/4; A_0 = 1 - 1/16.
    advantages, returns = gae(row(1, 0, 3), row(1, 2, 4), row(1, 1, 1).bool(), 0.5, 0.5, torch.zeros(1).double())
    assert advantages.tolist() == [[0.9375, -0.25, -1.0]]
    assert returns.tolist() == [[1.9375, 1.75, 3.0]]


def test_padding_changes_no_bit() -> None:
    bits = row(1, 1, 1, 0, 0).bool()
    rewards, values = torch.rand(1, 5).double(), torch.rand(1, 5).double()
    short = gae(rewards[:, :3], values[:, :3], bits[:, :3], 0.99, 0.95, torch.zeros(1).double())
    for junk in (0.0, 100.0, math.inf):
        filled = [torch.where(bits, x, junk) for x in (rewards, values)]
        long = gae(filled[0], filled[1], bits, 0.99, 0.95, torch.zeros(1).double())
        for one, other in zip(short, long, strict=True):
            assert other[:, :3].tolist() == one.tolist() and other[:, 3:].tolist() == [[0.0, 0.0]]


def test_turns_of_the_other_party_do_not_reset_the_sum() -> None:
    # Monte Carlo, no discount, no values: every token of ours, before and after their turn, sees the final 5.
    ours = row(1, 1, 0, 0, 1, 1).bool()
    advantages, _ = gae(row(0, 0, 9, 9, 0, 5), row(0, 0, 9, 9, 0, 0), ours, 1, 1, torch.zeros(1).double())
    assert advantages.tolist() == [[5, 5, 0, 0, 5, 5]]


def test_truncation_is_not_termination() -> None:
    rewards, values, bits = row(0, 1), row(0, 0), row(1, 1).bool()
    ended, _ = gae(rewards, values, bits, 0.5, 1.0, torch.tensor([0.0], dtype=torch.float64))
    cut_off, _ = gae(rewards, values, bits, 0.5, 1.0, torch.tensor([4.0], dtype=torch.float64))
    assert ended.tolist() == [[0.5, 1.0]]  # only the reward of 1, discounted
    assert cut_off.tolist() == [[1.5, 3.0]]  # and what would have come: 4 discounted twice and once


def test_misfitting_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="mask"):
        gae(row(1, 2), row(1, 2), row(1).bool(), 1, 1, torch.zeros(1))
    with pytest.raises(ValueError, match="bootstrap"):
        gae(row(1, 2), row(1, 2), row(1, 1).bool(), 1, 1, torch.zeros(1, 1))


def test_returns_to_go_by_hand() -> None:
    # gamma 1/2, a turn of the other party in between takes no time: 4; 2 + 4/2; 1 + (2 + 4/2)/2.
    ours = row(1, 0, 1, 1, 0).bool()
    assert returns_to_go(row(1, 9, 2, 4, math.nan), ours, 0.5).tolist() == [[3.0, 0.0, 4.0, 4.0, 0.0]]


GROUPS = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0], dtype=torch.float64)
"""Two prompts x three samples: means 3 and 1."""


def test_group_baselines_by_hand() -> None:
    assert group_centred(GROUPS, 3).tolist() == [-2.0, -1.0, 3.0, -1.0, -1.0, 2.0]
    # The mean of the two others: 4, 3.5, 1.5 and 1.5, 1.5, 0.
    assert leave_one_out(GROUPS, 3).tolist() == pytest.approx([-3.0, -1.5, 4.5, -1.5, -1.5, 3.0])
    # Sample deviations: sqrt((4 + 1 + 9) / 2) = sqrt 7 and sqrt((1 + 1 + 4) / 2) = sqrt 3.
    expected = [x / math.sqrt(7) for x in (-2, -1, 3)] + [x / math.sqrt(3) for x in (-1, -1, 2)]
    assert group_standardised(GROUPS, 3, epsilon=0.0).tolist() == pytest.approx(expected)


@settings(max_examples=60)
@given(st.floats(-1e3, 1e3), st.integers(2, 9), st.integers(1, 4))
def test_a_group_of_equal_scores_teaches_nothing(score: float, size: int, groups: int) -> None:
    """Row 20: 0 exactly, neither NaN nor rounding over a tiny deviation."""
    scores = torch.full((size * groups,), score, dtype=torch.float64)
    for baseline in (group_centred, leave_one_out, group_standardised):
        assert baseline(scores, size).tolist() == [0.0] * (size * groups)


@settings(max_examples=60)
@given(st.lists(st.floats(-50, 50), min_size=12, max_size=12), st.sampled_from([2, 3, 4, 6]), st.floats(-9, 9))
def test_a_groups_baseline_is_its_own(scores: list[float], size: int, shift: float) -> None:
    """Advantages of a group sum to 0, and no other group's scores have a part in them, nor a constant."""
    x = torch.tensor(scores, dtype=torch.float64)
    for baseline in (group_centred, leave_one_out, group_standardised):
        found = baseline(x, size)
        assert found.view(-1, size).sum(dim=1).abs().max() < 1e-9
        assert torch.equal(found[:size], baseline(x[:size], size))
        # scores that are not equal, but nearly, may lose what distinguishes them beside a large constant
        torch.testing.assert_close(baseline(x + shift, size), found, rtol=1e-6, atol=1e-6)
    others = [(sum(scores[:size]) - scores[i]) / (size - 1) for i in range(size)]
    assert leave_one_out(x, size)[:size].tolist() == pytest.approx(
        [scores[i] - others[i] for i in range(size)], abs=1e-9
    )


@pytest.mark.parametrize("size", [0, 1, 4])
def test_a_group_of_one_or_a_broken_group_is_refused(size: int) -> None:
    for baseline in (group_centred, leave_one_out, group_standardised):
        with pytest.raises(ValueError, match="multiple of the group size"):
            baseline(GROUPS, size)
    with pytest.raises(ValueError, match="must be"):
        group_centred(GROUPS.view(2, 3), 3)
