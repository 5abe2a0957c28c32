"""The algorithms by their names."""

from __future__ import annotations

from cai_dist.config import algorithms as names
from cai_dist.experience.algorithms.dr_grpo import dr_grpo
from cai_dist.experience.algorithms.gae import gae
from cai_dist.experience.algorithms.grpo import grpo
from cai_dist.experience.algorithms.protocol import Algorithm
from cai_dist.experience.algorithms.reinforce import reinforce, reinforce_group
from cai_dist.experience.algorithms.rloo import rloo

ALGORITHMS: dict[names.AlgorithmName, Algorithm] = {
    "gae": gae,
    "rloo": rloo,
    "reinforce++": reinforce,
    "reinforce++-group": reinforce_group,
    "grpo": grpo,
    "dr-grpo": dr_grpo,
}
