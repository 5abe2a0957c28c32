"""Generalised advantage estimation (Schulman et al. 2015, 1506.02438, equation 16) and whitening."""

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


def whiten(x: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over all valid entries; the mean is not added back.

    Call it once, on the whole batch: statistics of a rank or a mini-batch would weigh samples by their company.

    Args:
        x: any shape.
        mask: bool, same shape; what stands outside it is never read.
        epsilon: keeps a constant input (a single valid entry too) at 0 instead of NaN.

    Returns: same shape, 0 outside the mask; mean 0 and population variance 1 inside.

    Raises: ValueError if the shapes differ.
    """
    same_shape(x=x, mask=mask)
    valid = x[mask].double()  # in float32 the rounding of the mean alone could pass for variance
    whitened = torch.zeros_like(x)
    if valid.numel():
        centred = valid - valid.mean()
        whitened[mask] = (centred / torch.sqrt((centred**2).mean() + epsilon)).to(x.dtype)
    return whitened
