"""REINFORCE leave-one-out (Ahmadian et al. 2024, 2402.14740)."""

from __future__ import annotations

from cai_dist.config.ppo import PpoConfig
from cai_dist.experience.algorithms.protocol import Estimate, Experience
from cai_dist.losses.advantages import leave_one_out


def rloo(batch: Experience, config: PpoConfig) -> Estimate:
    """A = R - mean of the others' R, with R the reward of a whole response (score minus its KL penalties)."""
    return Estimate(batch.on_tokens(leave_one_out(batch.totals, config.samples_per_prompt)))
