"""The algorithms by their names."""

from __future__ import annotations

from cai_dist.config import algorithms as names
from cai_dist.coordinator.algorithms.dr_grpo import dr_grpo
from cai_dist.coordinator.algorithms.gae import gae
from cai_dist.coordinator.algorithms.grpo import grpo
from cai_dist.coordinator.algorithms.protocol import Algorithm
from cai_dist.coordinator.algorithms.reinforce import reinforce, reinforce_group
from cai_dist.coordinator.algorithms.rloo import rloo

ALGORITHMS: dict[names.Algorithm, Algorithm] = {
    "gae": gae,
    "rloo": rloo,
    "reinforce++": reinforce,
    "reinforce++-group": reinforce_group,
    "grpo": grpo,
    "dr-grpo": dr_grpo,
}
