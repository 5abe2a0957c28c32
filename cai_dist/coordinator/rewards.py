"""From scores and log-probabilities to advantages.

Tensors are float64 [B, N], one row a sample, its response tokens padded on the right: the driver's share of the
arithmetic is small, and it should not be where precision goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cai_dist.config.run import PpoConfig
from cai_dist.losses.advantages import gae, whiten
from cai_dist.losses.kl import k1


@dataclass(frozen=True, slots=True)
class Shaped:
    """What PPO learns from; [B, N] each, 0 outside the mask."""

    mask: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    kl: Tensor
    """k1 estimate of KL(policy || reference) per token, nats."""


def shape(
    logprobs: Sequence[Sequence[float]],
    reference: Sequence[Sequence[float]],
    values: Sequence[Sequence[float]],
    scores: Sequence[float],
    config: PpoConfig,
    coefficient: float,
) -> Shaped:
    """KL-shaped rewards, advantages and returns of a whole batch (2204.05862, section 4.1).

    Args:
        logprobs, reference, values: per sample, one number a response token.
        scores: per sample, raw score.
        coefficient: of the KL penalty.
    """
    mask = token_mask([len(row) for row in logprobs])
    kl = k1(padded(logprobs) - padded(reference))
    values_ = padded(values)
    rewards = shaped_rewards(kl, mask, clipped(scores, config.score_clip), coefficient)
    # A response cut off at the token limit has been scored as it stands: its episode is over like any other, and a
    # bootstrapped value would count the score twice.
    bootstrap = torch.zeros(len(scores), dtype=torch.float64)
    advantages, returns = gae(rewards, values_, mask, config.gamma, config.gae_lambda, bootstrap)
    if config.whiten_advantages:
        advantages = whiten(advantages, mask)
    return Shaped(mask, rewards, advantages, returns, kl)


def shaped_rewards(kl: Tensor, mask: Tensor, scores: Tensor, coefficient: float) -> Tensor:
    """-coefficient x KL at every response token, and the score on the last one besides.

    Args:
        kl: [B, N] nats. mask: bool [B, N], no row empty. scores: [B].

    Returns: [B, N], 0 outside the mask.
    """
    rewards = (-coefficient * kl).masked_fill(~mask, 0.0)
    last = mask.sum(dim=1) - 1
    rewards[torch.arange(len(scores)), last] += scores
    return rewards


def clipped(scores: Sequence[float], clip: float | None) -> Tensor:
    """[B] raw scores, clipped to +-clip if there is one.

    They are not centred: a constant is no incentive, and the value model, which starts from the preference model,
    starts on their scale.
    """
    raw = torch.tensor(scores, dtype=torch.float64)
    return raw if clip is None else raw.clamp(-clip, clip)


def token_mask(lengths: Sequence[int]) -> Tensor:
    """bool [B, N]: true for the tokens of each response."""
    return torch.arange(max(lengths)).unsqueeze(0) < torch.tensor(lengths).unsqueeze(1)


def padded(rows: Sequence[Sequence[float]]) -> Tensor:
    """Ragged lists -> float64 [B, N], 0 in the padding."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float64)
