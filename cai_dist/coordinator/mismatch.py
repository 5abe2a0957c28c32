"""How far the sampler's log-probabilities are from the trainer's: what two programs make of the same weights
(mismatch), and what the weights have moved since (off-policy)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import sub
from statistics import fmean

from cai_dist.types import Trajectory

_MAX_LOG_RATIO = 20.0  # exp() of more would drown every other token


def distances(trajectories: Sequence[Trajectory], version: int) -> dict[str, float]:
    """Mean and largest |log p_trainer - log p_sampler| of a token, nats, and an estimate of KL(sampler || trainer) per
    token: the mean of exp(d) - 1 - d over the sampler's tokens, d = log p_trainer - log p_sampler (k3; Schulman 2020).

    As `mismatch_*` over the tokens that weights of the trainer's `version` made, as `offpolicy_*` over those of older
    weights, with `stale_tokens`, their share; `staleness_max` is the age of the oldest, in versions. What there is no
    token for is left out.
    """
    same: list[float] = []
    stale: list[float] = []
    oldest = version
    for item in trajectories:
        if not item.versions:  # all tokens are of the same weights, as almost always: no look at each
            kind = same if item.weight_version == version else stale
            kind.extend(map(sub, item.old_logprobs, item.sampler_logprobs))
            oldest = min(oldest, item.weight_version)
            continue
        versions = item.versions
        oldest = min(oldest, *versions)
        for of_token, ours, theirs in zip(versions, item.old_logprobs, item.sampler_logprobs, strict=True):
            (same if of_token == version else stale).append(ours - theirs)
    metrics = _summary("mismatch", same)
    if stale:
        metrics |= _summary("offpolicy", stale)
        metrics["stale_tokens"] = len(stale) / (len(stale) + len(same))
        metrics["staleness_max"] = float(version - oldest)
    return metrics


def _summary(name: str, differences: Sequence[float]) -> dict[str, float]:
    if not differences:
        return {}
    return {
        f"{name}_mean": fmean(map(abs, differences)),
        f"{name}_max": max(map(abs, differences)),
        f"{name}_kl": fmean(math.expm1(min(d, _MAX_LOG_RATIO)) - d for d in differences),
    }
