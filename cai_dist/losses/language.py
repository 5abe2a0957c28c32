"""Next-token loss of pretraining and supervised fine-tuning (2212.08073, section 3.1)."""

from __future__ import annotations

from torch import Tensor

from cai_dist.losses.shapes import masked_sum, same_shape


def language_loss(logprobs: Tensor, weights: Tensor, denominator: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted negative log-likelihood, -sum(weights * logprobs) / denominator.

    Args:
        logprobs: any shape (flat [N] in training), nats; of tokens without a weight they are never read.
        weights: same shape, weight of predicting each token; 0 for a prompt.
        denominator: sum of the weights over all micro-batches and ranks of the step.

    Returns: the scalar loss (nats per token once summed over micro-batches and ranks) and {"loss"}.

    Raises: ValueError if the shapes differ.
    """
    same_shape(logprobs=logprobs, weights=weights)
    loss = -masked_sum(weights * logprobs, weights != 0) / denominator
    return loss, {"loss": loss.detach()}
