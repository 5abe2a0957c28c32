"""Group relative policy optimisation (Shao et al. 2024, DeepSeekMath, 2402.03300, section 4.1.2)."""

from __future__ import annotations

from cai_dist.config.ppo import PpoConfig
from cai_dist.experience.algorithms.protocol import Estimate, Experience
from cai_dist.losses.advantages import group_standardised


def grpo(batch: Experience, config: PpoConfig) -> Estimate:
    """A = (R - mean) / deviation within the samples of a prompt, the same on every token."""
    return Estimate(batch.on_tokens(group_standardised(batch.totals, config.samples_per_prompt)))
