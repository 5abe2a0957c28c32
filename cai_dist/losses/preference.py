"""Soft-label Bradley-Terry loss of the preference model.

2204.05862, section 3: P(A better) = sigmoid(r_A - r_B). 2212.08073, section 4.1: the target is the feedback model's
probability, not a 0/1 label.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cai_dist.losses.shapes import masked_sum, same_shape


def soft_preference_loss(
    scores_a: Tensor,
    scores_b: Tensor,
    p_a: Tensor,
    denominator: float,
    valid: Tensor | None = None,
    margin: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy -[p log sigma(d) + (1 - p) log sigma(-d)] with d = score of A - score of B - margin * (2p - 1).

    The better answer's score is wanted higher by `margin` times the label's certainty |2p - 1|, whichever side it is
    on; the loss is least at a difference of logit(p) + margin * (2p - 1).

    Args:
        scores_a, scores_b: [B] raw scores (logits).
        p_a: [B] target probability that A is better.
        denominator: pairs over all micro-batches and ranks of the step.
        valid: bool [B]; False for rows that only stand in for an empty micro-batch. Default: all are valid.
        margin: in logits, at least 0; with it sigma of a difference of scores is no longer calibrated to p.

    Returns: the scalar loss and its metrics, sums / denominator: `loss`, `accuracy` (against the label p > 0.5; a tie
        of the scores or a label of 0.5 counts one half, so that swapping A and B changes nothing), `margin` (mean
        difference of the scores, signed towards the label) and `score` (mean of all scores).

    Raises: ValueError if the shapes differ.
    """
    valid = torch.ones_like(p_a, dtype=torch.bool) if valid is None else valid
    same_shape(scores_a=scores_a, scores_b=scores_b, p_a=p_a, valid=valid)
    difference = scores_a - scores_b
    d = difference - margin * (2 * p_a - 1)
    pair_loss = -(p_a * F.logsigmoid(d) + (1 - p_a) * F.logsigmoid(-d))
    loss = masked_sum(pair_loss, valid) / denominator
    with torch.no_grad():
        towards_label = difference * torch.sign(p_a - 0.5)
        per_pair = {
            "accuracy": (torch.sign(towards_label) + 1) / 2,
            "margin": towards_label,
            "score": (scores_a + scores_b) / 2,
        }
        metrics = {name: masked_sum(value, valid) / denominator for name, value in per_pair.items()}
    return loss, {"loss": loss.detach(), **metrics}
