"""REINFORCE++ (Hu et al. 2025, 2501.03262): no value model, the baseline is the mean of the whole batch.

The baseline and its deviation come with the whitening that both variants have by default.
"""

from __future__ import annotations

from dataclasses import replace

from cai_dist.config.ppo import PpoConfig
from cai_dist.experience.algorithms.protocol import Estimate, Experience
from cai_dist.losses.advantages import group_centred, returns_to_go


def reinforce(batch: Experience, config: PpoConfig) -> Estimate:
    """A_t = sum of the rewards from t on: the score minus the KL penalties still to come."""
    return Estimate(returns_to_go(batch.rewards, batch.mask, config.gamma))


def reinforce_group(batch: Experience, config: PpoConfig) -> Estimate:
    """REINFORCE++ on scores from which the mean of their prompt is taken (the paper's variant with a baseline)."""
    return reinforce(replace(batch, scores=group_centred(batch.scores, config.samples_per_prompt)), config)
