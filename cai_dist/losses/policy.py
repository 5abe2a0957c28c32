"""The policy's loss: clipped surrogate, KL to the reference and entropy, token by token.

With w_t the token's weight, rho_t = p(x_t) / p_old(x_t), A_t its advantage and D the denominator:

    L = 1/D sum_t w_t [ -J_t + beta * kl_t - eta * H_t ]
    J_t = min(rho_t A_t, clip(rho_t, 1 - clip, 1 + clip_high) A_t)   (Schulman et al. 2017, 1707.06347, equation 7)
    J_t = max(J_t, dual_clip * A_t) where A_t < 0                    (Ye et al. 2020, 1912.09729, equation 5)

A ratio per sequence (`PolicyObjective.ratio`) puts s = exp(mean over its tokens of log rho_t) in the place of every
rho_t of a sequence (GSPO, Zheng et al. 2025, 2507.18071, equations 5 and 7).

Weights and denominator say what the loss is a mean over (tokens, sequences, a constant); both are given, neither is
counted here, so that neither micro-batches nor ranks change the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cai_dist.losses.kl import ESTIMATORS, k3
from cai_dist.losses.shapes import masked_sum, same_shape

MAX_LOG_RATIO = 20.0
"""Up to which log-ratio the ratio is its exp(): of much more that would overflow and turn the whole step into NaN."""


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """What the policy's loss is made of."""

    clip: float
    """Lower half width of the ratio's trust interval."""
    clip_high: float | None = None
    """Upper half width; None: `clip`."""
    dual_clip: float | None = None
    """Bound of the loss of a token with a negative advantage, in units of the advantage; above 1. None: no bound."""
    kl: Literal["k1", "k2", "k3"] | None = None
    """Estimator of the KL term; None: none (the KL is part of the rewards).

    For x drawn from the policy, the expected gradient of k1's term is zero (E[grad log p] = 0), that of k2's is
    grad KL(policy || reference), that of k3's is grad KL(reference || policy).
    """
    entropy: float = 0.0
    """Weight of the entropy, nats per token."""
    ratio: Literal["token", "sequence"] = "token"
    """What is clipped: the ratio of each token, or that of its whole sequence."""


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    mask: Tensor,
    denominator: float,
    objective: PolicyObjective,
    *,
    ref_logprobs: Tensor | None = None,
    kl_coefficient: float = 0.0,
    entropy: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss above, over the tokens of one micro-batch.

    Args:
        logprobs: any shape, nats under the policy being trained; the rest has the same shape.
        old_logprobs: nats, denominator of the ratio.
        advantages: one for each token.
        weights: of each token; no gradient goes through them.
        mask: bool, true for response tokens; what stands elsewhere is never read.
        denominator: of the loss, over all micro-batches and ranks of the step.
        ref_logprobs: nats under the reference; needed for a KL term.
        kl_coefficient: beta, of this update (an adaptive controller moves it).
        entropy: nats, of the distribution that each token was drawn from; needed for an entropy bonus.
        lengths: long [B], tokens of each of the sequences that the others, flat [N], are made of; needed for a ratio
            per sequence.

    Returns: the scalar loss and its metrics. `loss` is it again, a part of the whole step's. The others are sums over
        the mask, `tokens` their count: `clip_fraction` (tokens whose gradient a clip cut off), `approx_kl` (k3 estimate
        of KL(old || new), nats), `ratio`, `ratio_deviation` (squared distance from 1), and where they are part of the
        loss `kl` (nats, by its estimator) and `entropy` (nats). `token_means` makes means of them.

    Raises: ValueError if the shapes differ, or a tensor is missing that the objective needs.
    """
    same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, weights=weights, mask=mask)
    # The input is masked, not only the sum: 0 * NaN on the way back would be NaN.
    logprobs = logprobs.masked_fill(~mask, 0.0)
    log_ratio = logprobs - old_logprobs
    if objective.ratio == "sequence":
        if lengths is None:
            raise ValueError("lengths is missing: the objective has a ratio per sequence")
        # Masked: a token outside would reach its whole sequence on the way back.
        ratio = _ratio(sequence_means(log_ratio, mask, lengths)).masked_fill(~mask, 1.0)
    else:
        ratio = _ratio(log_ratio)
    surrogate, cut = _surrogate(ratio, advantages, objective)
    per_token = -surrogate
    sums = {
        "clip_fraction": cut.to(ratio.dtype),
        "approx_kl": k3(-log_ratio),
        "ratio": ratio,
        "ratio_deviation": (ratio - 1) ** 2,
    }
    if objective.kl is not None:
        reference = _needed(ref_logprobs, mask, "ref_logprobs", "a KL term")
        sums["kl"] = ESTIMATORS[objective.kl](logprobs - reference)
        per_token = per_token + kl_coefficient * sums["kl"]
    if objective.entropy:
        sums["entropy"] = _needed(entropy, mask, "entropy", "an entropy bonus").masked_fill(~mask, 0.0)
        per_token = per_token - objective.entropy * sums["entropy"]
    loss = masked_sum(weights.detach() * per_token, mask) / denominator
    metrics = {name: masked_sum(values.detach(), mask) for name, values in sums.items()}
    return loss, {"loss": loss.detach(), "tokens": mask.sum().to(ratio.dtype), **metrics}


def token_means(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of a whole step: sums over all its micro-batches and ranks -> means over its response tokens.

    Whatever the loss is a mean over, these are means over tokens: an `approx_kl` is nats per token under each. Without
    a token they are 0.
    """
    tokens = max(metrics["tokens"], 1.0)
    sums = {"clip_fraction", "approx_kl", "ratio", "ratio_deviation", "kl", "entropy"}
    return {name: value / tokens if name in sums else value for name, value in metrics.items() if name != "tokens"}


def sequence_means(values: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    """The mean of `values` over the mask of each sequence, on all of its tokens: [N] -> [N]; 0 where the mask is empty.

    Args:
        values, mask: [N], the sequences one after the other.
        lengths: long [B], their sum is N.

    Raises: ValueError if the shapes do not fit (whether the lengths do is seen on the CPU alone).
    """
    same_shape(values=values, mask=mask)
    total = int(lengths.sum()) if lengths.is_cpu else len(values)  # on a GPU the host would wait for the sum
    if values.dim() != 1 or total != len(values):
        raise ValueError(f"values {list(values.shape)} must be [N], N the sum of the lengths {total}")
    sequences = torch.arange(len(lengths), device=lengths.device)
    rows = torch.repeat_interleave(sequences, lengths, output_size=len(values))
    sums = values.new_zeros(len(lengths)).index_add(0, rows, values.masked_fill(~mask, 0.0))
    counts = values.new_zeros(len(lengths)).index_add(0, rows, mask.to(values.dtype))
    return (sums / counts.clamp(min=1.0))[rows]


def _ratio(log_ratio: Tensor) -> Tensor:
    """exp(log_ratio); above `MAX_LOG_RATIO` it goes on as the tangent there: finite, and a token that has become far
    too likely is still pulled back, which a constant would not do."""
    beyond = torch.relu(log_ratio - MAX_LOG_RATIO)
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp() * (1 + beyond)


def _surrogate(ratio: Tensor, advantages: Tensor, objective: PolicyObjective) -> tuple[Tensor, Tensor]:
    """J of each token, and whether a clip cut its gradient off."""
    high = objective.clip if objective.clip_high is None else objective.clip_high
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - objective.clip, 1 + high) * advantages
    surrogate, cut = torch.minimum(unclipped, clipped), clipped < unclipped
    if objective.dual_clip is not None:
        floor = objective.dual_clip * advantages
        below = (advantages < 0) & (surrogate < floor)
        surrogate, cut = torch.where(below, floor, surrogate), cut | below
    return surrogate, cut


def _needed(tensor: Tensor | None, mask: Tensor, name: str, purpose: str) -> Tensor:
    """A tensor that the objective cannot do without."""
    if tensor is None:
        raise ValueError(f"{name} is missing: the objective has {purpose}")
    same_shape(mask=mask, **{name: tensor})
    return tensor
