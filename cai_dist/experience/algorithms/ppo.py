"""PPO: generalised advantage estimation over a value model (1506.02438, equation 16; 1707.06347)."""

from __future__ import annotations

from cai_dist.config.ppo import PpoConfig
from cai_dist.experience.algorithms.protocol import Estimate, Experience
from cai_dist.losses.advantages import gae


def ppo(batch: Experience, config: PpoConfig) -> Estimate:
    """A_t = sum over l of (gamma lambda)^l delta_(t+l); the baseline is V. Raises ValueError without values."""
    if batch.values is None or batch.bootstrap is None:
        raise ValueError("ppo needs the values of a value model")
    return Estimate(
        *gae(batch.rewards, batch.values, batch.mask, config.gamma, config.gae_lambda, bootstrap=batch.bootstrap)
    )
