"""GRPO done right (Liu et al. 2025, 2503.20783, section 3.2): without the deviation, which weighs easy and hard prompts
up, and without each response's own length, which favours long wrong answers (its aggregation is `constant`)."""

from __future__ import annotations

from cai_dist.config.ppo import PpoConfig
from cai_dist.experience.algorithms.protocol import Estimate, Experience
from cai_dist.losses.advantages import group_centred


def dr_grpo(batch: Experience, config: PpoConfig) -> Estimate:
    """A = R - mean within the samples of a prompt, the same on every token."""
    return Estimate(batch.on_tokens(group_centred(batch.totals, config.samples_per_prompt)))
