"""Least squares on people's ratings (2212.08073, section 4.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from cai_dist.losses.shapes import masked_sum, same_shape


def rating_loss(
    scores: Tensor, ratings: Tensor, denominator: float, valid: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of (score - rating)^2 / denominator.

    Args:
        scores: [B] what the model says, on the scale of the ratings.
        ratings: [B] what people said.
        denominator: answers over all micro-batches and ranks of the step.
        valid: bool [B]; False for rows that only stand in for an empty micro-batch. Default: all are valid.

    Returns: the scalar loss and its metrics, sums / denominator: `loss`, `absolute_error`, `rating` (mean score).

    Raises: ValueError if the shapes differ.
    """
    valid = torch.ones_like(ratings, dtype=torch.bool) if valid is None else valid
    same_shape(scores=scores, ratings=ratings, valid=valid)
    error = scores - ratings
    loss = masked_sum(error.square(), valid) / denominator
    with torch.no_grad():
        metrics = {
            "absolute_error": masked_sum(error.abs(), valid) / denominator,
            "rating": masked_sum(scores, valid) / denominator,
        }
    return loss, {"loss": loss.detach(), **metrics}
