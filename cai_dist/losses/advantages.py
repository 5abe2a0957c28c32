"""Generalised advantage estimation (Schulman et al. 2015, 1506.02438, equation 16), returns, and baselines of a group
of samples of one prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from cai_dist.losses.shapes import same_shape


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, bootstrap: Tensor
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of every valid token.

    delta_t = r_t + gamma V_next - V_t and A_t = delta_t + gamma lam A_next, where "next" is the next *valid* token:
    tokens that the mask leaves out (padding, turns of the other party) take no time and neither end nor reset the sum.

    Args:
        rewards: [B, N] reward for having produced each token.
        values: [B, N] V of the state before each token.
        mask: bool [B, N]; what stands outside it is never read.
        gamma: discount per token.
        lam: lambda of GAE; 1 is Monte Carlo, 0 is one-step.
        bootstrap: [B] V of the state after the last valid token: 0 where the episode ended there (terminated), the
            value model's estimate where it was only cut off (truncated).

    Returns: advantages [B, N] and returns [B, N] (advantage + value, the target of the value model), 0 outside the
        mask.

    Raises: ValueError if the shapes do not fit.
    """
    same_shape(rewards=rewards, values=values, mask=mask)
    if bootstrap.shape != rewards.shape[:1]:
        raise ValueError(f"bootstrap {list(bootstrap.shape)} must be [B] of rewards {list(rewards.shape)}")
    advantages = torch.zeros_like(values)
    advantage, next_value = torch.zeros_like(bootstrap), bootstrap
    for t in reversed(range(rewards.shape[1])):
        valid = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # where(), not a product with the mask: NaN in padding times 0 is NaN.
        advantage = torch.where(valid, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(valid, values[:, t], next_value)
        advantages[:, t] = torch.where(valid, advantage, 0.0)
    return advantages, advantages + values.masked_fill(~mask, 0.0)


def returns_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Discounted sum of the rewards from each valid token on: G_t = r_t + gamma G_next, "next" as in `gae`.

    Args: as in `gae`. Returns: [B, N], 0 outside the mask.
    """
    # GAE with lambda 1 and a value of 0 everywhere is just that.
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0, rewards.new_zeros(len(rewards)))[0]


def group_centred(scores: Tensor, size: int) -> Tensor:
    """Each score minus the mean of its group; exactly 0 where all of a group are equal.

    Args:
        scores: [B], the `size` samples of each prompt side by side.

    Returns: [B].

    Raises: ValueError unless groups have at least 2 members (alone, a score would be its own baseline) and are whole.
    """
    groups = _groups(scores, size)
    differences = groups - groups[:, :1]  # equal scores: 0, not the rounding of their mean
    return (differences - differences.mean(dim=1, keepdim=True)).flatten()


def leave_one_out(scores: Tensor, size: int) -> Tensor:
    """Each score minus the mean of the *others* of its group (Ahmadian et al. 2024, 2402.14740, section 4.2): unbiased,
    since no sample is part of its own baseline. Arguments and errors of `group_centred`."""
    # s_i - (S - s_i) / (n - 1) = n / (n - 1) * (s_i - S / n)
    return group_centred(scores, size) * (size / (size - 1))


def group_standardised(scores: Tensor, size: int, epsilon: float = 1e-4) -> Tensor:
    """(score - mean) / (deviation + epsilon) within each group (Shao et al. 2024, 2402.03300, section 4.1.2).

    The deviation is that of a sample (n - 1), as the usual implementations have it; the paper does not say. Differences
    far below `epsilon` count as none. Arguments and errors of `group_centred`.
    """
    centred = group_centred(scores, size).view(-1, size)
    deviation = torch.sqrt((centred**2).sum(dim=1, keepdim=True) / (size - 1))
    return (centred / (deviation + epsilon)).flatten()


def _groups(scores: Tensor, size: int) -> Tensor:
    """[B] -> [B / size, size]."""
    if scores.dim() != 1 or size < 2 or len(scores) % size:
        raise ValueError(f"scores {list(scores.shape)} must be [B], B a multiple of the group size {size} > 1")
    return scores.view(-1, size)
