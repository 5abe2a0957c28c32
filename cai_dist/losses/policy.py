"""Clipped policy loss of PPO (Schulman et al. 2017, 1707.06347, equation 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from cai_dist.losses.kl import k3
from cai_dist.losses.shapes import masked_sum, same_shape

MAX_LOG_RATIO = 20.0
"""exp() of a larger log-ratio would soon overflow and turn the whole step into NaN."""


def ppo_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float, denominator: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """-sum over the mask of min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A) / denominator.

    Args:
        logprobs: [B, T] nats under the policy being trained.
        old_logprobs: [B, T] nats under the policy that sampled.
        advantages: [B, T].
        mask: bool [B, T], true for response tokens.
        clip: half width of the trust interval of the ratio.
        denominator: response tokens over all micro-batches and ranks of the step.

    Returns: the scalar loss and its metrics, sums / denominator: `loss`, `clip_fraction` (tokens whose gradient the
        clip cut off), `approx_kl` (k3 estimate of KL(old || new), nats per token), `ratio` (mean) and `ratio_deviation`
        (mean squared distance from 1).

    Raises: ValueError if the shapes differ.
    """
    same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    # The input is masked, not only the sum: 0 * NaN on the way back through padding would be NaN.
    logprobs = logprobs.masked_fill(~mask, 0.0)
    log_ratio = (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    loss = -masked_sum(torch.minimum(unclipped, clipped), mask) / denominator
    with torch.no_grad():
        per_token = {
            "clip_fraction": (clipped < unclipped).to(ratio.dtype),
            "approx_kl": k3(-log_ratio),
            "ratio": ratio,
            "ratio_deviation": (ratio - 1) ** 2,
        }
        metrics = {name: masked_sum(value, mask) / denominator for name, value in per_token.items()}
    return loss, {"loss": loss.detach(), **metrics}
