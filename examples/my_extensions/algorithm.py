"""An algorithm of one's own: what counts is the rank of a response among those to its prompt, not its score.

ppo: {algorithm: "my_extensions.algorithm:ranked", samples_per_prompt: 4}
"""

from __future__ import annotations

from cai_dist.config.algorithms import AlgorithmDefaults, algorithm
from cai_dist.config.ppo import PpoConfig
from cai_dist.experience.algorithms.protocol import Estimate, Experience


@algorithm(AlgorithmDefaults(kl_where="loss", kl_estimator="k2", aggregate="sequence", needs_group=True))
def ranked(batch: Experience, config: PpoConfig) -> Estimate:
    """Advantages from -1 (the worst response to a prompt) to 1 (the best), equally spaced, on every token."""
    groups = batch.totals.view(-1, config.samples_per_prompt)
    ranks = groups.argsort(dim=1).argsort(dim=1).double()
    return Estimate(batch.on_tokens((2 * ranks / (config.samples_per_prompt - 1) - 1).flatten()))
