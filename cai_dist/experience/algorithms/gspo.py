"""Group sequence policy optimisation (Zheng et al. 2025, 2507.18071, section 4.1).

The advantages are GRPO's. What differs is the ratio that the loss clips: one a response, the geometric mean of its
tokens' ratios (`AlgorithmDefaults.ratio`, `cai_dist.losses.policy`).
"""

from __future__ import annotations

from cai_dist.config.ppo import PpoConfig
from cai_dist.experience.algorithms.grpo import grpo
from cai_dist.experience.algorithms.protocol import Estimate, Experience


def gspo(batch: Experience, config: PpoConfig) -> Estimate:
    """A = (R - mean) / deviation within the samples of a prompt (equation 6), the same on every token."""
    return grpo(batch, config)
