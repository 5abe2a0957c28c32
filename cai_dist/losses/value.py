"""Clipped value loss of PPO (the form of OpenAI's baselines; Huang et al. 2022, "The 37 implementation details")."""

from __future__ import annotations

import torch
from torch import Tensor

from cai_dist.losses.shapes import masked_sum, same_shape


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float, denominator: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """0.5 * sum over the mask of max((V - R)^2, (V_clipped - R)^2) / denominator.

    V_clipped moves at most `clip` away from the value that the rollout phase saw.

    Args:
        values: any shape (flat [N] in training; the rest has the same), under the model being trained: V of the state
            before each token.
        old_values: of the rollout phase.
        returns: targets.
        mask: bool, true for response tokens.
        clip: largest move that is rewarded.
        denominator: response tokens over all micro-batches and ranks of the step.

    Returns: the scalar loss and its metrics, sums / denominator: `loss`, `clip_fraction` (tokens whose gradient the
        clip cut off), `error` (mean squared error without the clip) and `mean` (mean value).

    Raises: ValueError if the shapes differ.
    """
    same_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    # The input is masked, not only the sum: 0 * NaN on the way back would be NaN.
    values = values.masked_fill(~mask, 0.0)
    clipped_values = old_values + (values - old_values).clamp(-clip, clip)
    unclipped = (values - returns) ** 2
    clipped = (clipped_values - returns) ** 2
    loss = 0.5 * masked_sum(torch.maximum(unclipped, clipped), mask) / denominator
    with torch.no_grad():
        per_token = {
            # Inside the clip old + (new - old) may round to something else than new.
            "clip_fraction": ((clipped > unclipped) & ((values - old_values).abs() > clip)).to(values.dtype),
            "error": unclipped,
            "mean": values,
        }
        metrics = {name: masked_sum(value, mask) / denominator for name, value in per_token.items()}
    return loss, {"loss": loss.detach(), **metrics}
