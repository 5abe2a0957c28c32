"""Direct preference optimisation from soft labels: the policy itself is the model of the preference.

Its implicit reward of an answer is r(x, y) = beta (log pi(y|x) - log pi_ref(y|x)) (Rafailov et al. 2023, 2305.18290,
section 4), so that P(A better) = sigma(h) with h = r(A) - r(B). Log-probabilities are sums over the answer, not means.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cai_dist.losses.shapes import masked_sum, same_shape


def dpo_loss(
    logprobs_a: Tensor,
    logprobs_b: Tensor,
    ref_a: Tensor,
    ref_b: Tensor,
    p_a: Tensor,
    beta: float,
    denominator: float,
    valid: Tensor | None = None,
    *,
    kind: Literal["dpo", "ipo"] = "dpo",
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch of comparisons; with d = (log pi(A) - log ref(A)) - (log pi(B) - log ref(B)):

        dpo   -[p log sigma(beta d) + (1 - p) log sigma(-beta d)]         least at beta d = logit(p)
        ipo   p (d - 1/(2 beta))^2 + (1 - p) (d + 1/(2 beta))^2           least at d = (p - 1/2) / beta

    `dpo` is the expectation of 2305.18290, equation 7, over the label. `ipo` is that of the sampled loss of Azar et al.
    2023 (2310.12036, section 5) over the label, with tau = beta: its minimum is finite even where p is 0 or 1.
    Swapping A and B and p with 1 - p gives the same loss, bit for bit.

    Args:
        logprobs_a, logprobs_b: [B] log-probabilities (nats) of both answers under the policy.
        ref_a, ref_b: [B] the same under the frozen reference.
        p_a: [B] target probability that A is better.
        beta: strength of the pull towards the reference.
        denominator: pairs over all micro-batches and ranks of the step.
        valid: bool [B]; False for rows that only stand in for an empty micro-batch. Default: all are valid.

    Returns: the scalar loss and its metrics, sums / denominator: `loss`; `accuracy` (the sign of d against that of
        p - 1/2; a tie of either counts one half); `margin` (beta d, signed towards the label); `reward_preferred` and
        `reward_rejected` (implicit rewards); `logprob_preferred` (of the policy). Where p = 1/2, the mean of both sides
        counts as preferred and as rejected.

    Raises: ValueError if the shapes differ.
    """
    valid = torch.ones_like(p_a, dtype=torch.bool) if valid is None else valid
    same_shape(logprobs_a=logprobs_a, logprobs_b=logprobs_b, ref_a=ref_a, ref_b=ref_b, p_a=p_a, valid=valid)
    ratio_a, ratio_b = logprobs_a - ref_a, logprobs_b - ref_b
    difference = ratio_a - ratio_b
    against = 1 - p_a
    towards = 1 - against  # p_a, rounded as its mirror image 1 - (1 - p_a) would be: what makes the swap exact
    if kind == "dpo":
        pair_loss = -(towards * F.logsigmoid(beta * difference) + against * F.logsigmoid(-beta * difference))
    else:
        goal = 1 / (2 * beta)
        pair_loss = towards * (difference - goal).square() + against * (difference + goal).square()
    loss = masked_sum(pair_loss, valid) / denominator
    with torch.no_grad():
        sign = torch.sign(towards - against)
        per_pair = {
            "accuracy": (torch.sign(difference * sign) + 1) / 2,
            "margin": beta * difference * sign,
            "reward_preferred": beta * _side(ratio_a, ratio_b, sign),
            "reward_rejected": beta * _side(ratio_b, ratio_a, sign),
            "logprob_preferred": _side(logprobs_a, logprobs_b, sign),
        }
        metrics = {name: masked_sum(value, valid) / denominator for name, value in per_pair.items()}
    return loss, {"loss": loss.detach(), **metrics}


def _side(a: Tensor, b: Tensor, sign: Tensor) -> Tensor:
    """`a` where `sign` is 1, `b` where it is -1, their mean where it is 0."""
    return torch.where(sign > 0, a, torch.where(sign < 0, b, (a + b) / 2))
