"""From scores and log-probabilities to advantages.

Tensors are float64 [B, N], one row a sample, its response tokens padded on the right: this share of the arithmetic is
small, and it should not be where precision goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cai_dist.config.ppo import PpoConfig
from cai_dist.experience.algorithms.protocol import Experience
from cai_dist.experience.algorithms.registry import estimate
from cai_dist.losses.kl import ESTIMATORS, k1
from cai_dist.types.ragged import Array, Ragged

Rows = Ragged | Sequence[Sequence[float]]
"""Per sample, its numbers."""


@dataclass(frozen=True, slots=True)
class Shaped:
    """What the policy learns from; [B, N] each, 0 outside the mask."""

    mask: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor | None
    """Targets of the value model; None without one."""
    kl: Tensor
    """k1 estimate of KL(policy || reference) per token, nats, whichever the penalty uses: on average it is the KL."""


def shape(
    logprobs: Rows,
    reference: Rows,
    values: Rows | None,
    scores: Tensor,
    truncated: Sequence[bool],
    config: PpoConfig,
    coefficient: float,
) -> Shaped:
    """Rewards, advantages (before whitening) and returns of whole groups of samples of one prompt.

    Args:
        logprobs, reference: per sample, one number a response token.
        values: per sample, V of the state before each response token and, last, of the state after it; None for an
            algorithm without a value model.
        scores: [B] shaped scores.
        truncated: per sample, whether it was cut off at the token limit.
        coefficient: of the KL penalty.
    """
    mask = token_mask(Ragged.of(logprobs, np.float64).lengths)
    before, after = (None, None) if values is None else Ragged.of(values, np.float64).without_last()
    log_ratio = padded(logprobs) - padded(reference)
    penalties = torch.zeros_like(log_ratio)
    if config.kl_where == "reward":
        penalties = coefficient * ESTIMATORS[config.kl_estimator](log_ratio).masked_fill(~mask, 0.0)
    batch = Experience(
        mask=mask,
        scores=scores,
        penalties=penalties,
        values=None if before is None else padded(before),
        bootstrap=None if after is None else _bootstrap(after.tolist(), truncated, config),
    )
    found = estimate(batch, config)
    return Shaped(mask, batch.rewards, found.advantages, found.returns, k1(log_ratio))


def _bootstrap(after: Sequence[float], truncated: Sequence[bool], config: PpoConfig) -> Tensor:
    """[B] V of the state after the last token where the response was cut off and the settings ask for it, else 0.

    By default a response cut off at the token limit, scored as it stands, is over like any other.
    """
    return torch.tensor(
        [value if cut and config.bootstrap_truncated else 0.0 for value, cut in zip(after, truncated, strict=True)],
        dtype=torch.float64,
    )


def token_mask(lengths: Array) -> Tensor:
    """Bool [B, N]: true for the tokens of each response; `lengths` [B]."""
    return torch.arange(int(lengths.max())).unsqueeze(0) < torch.from_numpy(lengths).unsqueeze(1)


def padded(rows: Rows) -> Tensor:
    """Rows of different lengths -> float64 [B, N], 0 in the padding."""
    ragged = Ragged.of(rows, np.float64)
    mask = token_mask(ragged.lengths)
    filled = np.zeros(mask.shape)
    filled[mask.numpy()] = ragged.flat
    return torch.from_numpy(filled)
