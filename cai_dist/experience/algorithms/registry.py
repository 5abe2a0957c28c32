"""The algorithms by their names, and the check of what one of them gives."""

from __future__ import annotations

from functools import partial

import torch

from cai_dist.config import algorithms as names
from cai_dist.config.ppo import PpoConfig
from cai_dist.errors import ConfigError
from cai_dist.experience.algorithms.dr_grpo import dr_grpo
from cai_dist.experience.algorithms.grpo import grpo
from cai_dist.experience.algorithms.gspo import gspo
from cai_dist.experience.algorithms.ppo import ppo
from cai_dist.experience.algorithms.protocol import Algorithm, Estimate, Experience
from cai_dist.experience.algorithms.reinforce import reinforce, reinforce_group
from cai_dist.experience.algorithms.rloo import rloo
from cai_dist.registry import Registry

ALGORITHMS: dict[names.AlgorithmName, Algorithm] = {
    "ppo": ppo,
    "rloo": rloo,
    "reinforce++": reinforce,
    "reinforce++-group": reinforce_group,
    "grpo": grpo,
    "dr-grpo": dr_grpo,
    "gspo": gspo,
}


REGISTRY: Registry[Algorithm] = Registry(
    names.KEY, {name: partial(ALGORITHMS.__getitem__, name) for name in ALGORITHMS}, names.SIGNATURE
)


def estimate(batch: Experience, config: PpoConfig) -> Estimate:
    """What `config.algorithm` makes of a batch. Raises ConfigError for an algorithm that cannot be found, or whose
    estimate does not fit the batch."""
    found = REGISTRY.resolve(config.algorithm)(batch, config)
    where = f"{names.KEY}={config.algorithm}"
    if not isinstance(found, Estimate):
        raise ConfigError(f"{where}: must give an Estimate, gave a {type(found).__name__}")
    if (found.returns is None) == config.defaults.needs_value:
        needs = "must" if config.defaults.needs_value else "must not"
        raise ConfigError(f"{where}: {needs} give returns, as its needs_value={config.defaults.needs_value} says")
    for name, tensor in (("advantages", found.advantages), ("returns", found.returns)):
        if tensor is not None and tensor.shape != batch.mask.shape:
            raise ConfigError(f"{where}: {name} of shape {list(tensor.shape)}, must be {list(batch.mask.shape)}")
        if tensor is not None and not bool(torch.isfinite(tensor[batch.mask]).all()):
            raise ConfigError(f"{where}: gave {name} that are not finite")
    return found
