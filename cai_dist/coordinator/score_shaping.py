"""Shaping of scores, from raw ones to those that become rewards. Each step is off unless a setting asks for it; their
order is fixed:

    raw -> length -> normalisation -> clip -> penalty for a missing end

The slope on length is taken out first, of what the preference model said and of nothing else. The clip bounds what is
learned from, so it comes after normalisation. The penalty comes last: truncated responses are the longest, the length
step would take a penalty back; and a clip would hide it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cai_dist.config.ppo import PpoConfig
from cai_dist.experience.moments import Moments

MIN_DEVIATION = 1e-3
"""Scores (logits) that differ by less are equal: normalisation must not blow their rounding up."""


@dataclass(frozen=True, slots=True)
class ShapedScores:
    """The scores that rewards are made of, and what was learned of the raw ones on the way."""

    scores: Tensor
    """float64 [B]."""
    statistics: Moments
    """Of the scores that entered normalisation, this batch included; carried in the state."""
    slope: float
    """Score per token of length that was taken out; 0 where none was."""


def shape_scores(
    raw: Sequence[float],
    lengths: Sequence[int],
    truncated: Sequence[bool],
    config: PpoConfig,
    before: Moments,
) -> ShapedScores:
    """Apply every step that the settings ask for to a whole batch.

    They are not centred unless normalised: a constant is no incentive, and the value model, which starts from the
    preference model, starts on their scale.

    Args:
        raw: per sample, the preference model's score.
        lengths: per sample, response tokens.
        truncated: per sample, whether it was cut off at the token limit.
        before: statistics of the iterations before. With `score_normalization: running` this batch is merged first: the
            first batch has statistics too, and no score is measured against a mean that it has no part in.
    """
    scores, slope = torch.tensor(raw, dtype=torch.float64), 0.0
    if config.score_length == "residual":
        scores, slope = without_length(scores, torch.tensor(lengths, dtype=torch.float64))
    batch = scores.tolist()
    statistics = before.merged(Moments.of(batch))
    if config.score_normalization == "running":
        scores = normalized(scores, statistics)
    elif config.score_normalization == "batch":
        scores = normalized(scores, Moments.of(batch))
    if config.score_clip is not None:
        scores = scores.clamp(-config.score_clip, config.score_clip)
    scores = scores - config.missing_eos_penalty * torch.tensor(truncated, dtype=torch.float64)
    return ShapedScores(scores, statistics, slope)


def without_length(scores: Tensor, lengths: Tensor) -> tuple[Tensor, float]:
    """Scores without their least-squares slope on length: what remains is uncorrelated with it, the mean stays.

    Args:
        scores: [B]. lengths: [B] tokens.

    Returns: [B] and the slope, score per token; 0 where all lengths are equal.
    """
    centred = lengths - lengths.mean()
    spread = float((centred**2).sum())
    slope = float((centred * (scores - scores.mean())).sum()) / spread if spread > 0 else 0.0
    return scores - slope * centred, slope


def normalized(scores: Tensor, statistics: Moments) -> Tensor:
    """(score - mean) / deviation, the deviation at least `MIN_DEVIATION`. [B] -> [B]."""
    return (scores - statistics.mean) / max(statistics.deviation, MIN_DEVIATION)
