"""Where the roles of PPO stand: processes, CPUs and GPUs of each, and who shares what."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cai_dist.config.base import Section


class PlacementConfig(Section):
    """Resources of one worker of a role; where an engine of vLLM is several processes (`engine.vllm.tensor_parallel`),
    of each of them."""

    workers: int | None = Field(None, ge=1)
    """Processes. Default: of a trained role the `ranks` of its sharding, which then need no second number; of a role
    with GPUs that shares them with trained ones as many as those have ranks, one on each GPU; else 1."""
    cpus: float = Field(0.25, gt=0)
    gpus: float = Field(0.0, ge=0)
    threads: int | None = Field(None, ge=1)
    """CPU threads of its process; default: `cluster.threads`. Roles that work while the others wait, such as rollout,
    may have more."""


PpoRole = Literal["policy", "value", "reference", "reward", "rollout"]


class RoleShards(Section):
    """Placement of the five roles of PPO; that of a role which the run has not is not looked at."""

    mode: Literal["separate", "colocated", "hybrid"] = "separate"
    """`separate`: every worker has its own GPU; `colocated`: all roles share the same ones, and what a phase does not
    need leaves the GPU for it (engines sleep, training states are offloaded); `hybrid`: the roles of each group in
    `share` do so."""
    share: tuple[tuple[PpoRole, ...], ...] = ()
    """With `mode: hybrid`: groups of roles that share GPUs, such as [[policy, rollout], [value, reward, reference]]; a
    role that is in none has its own."""
    policy: PlacementConfig = PlacementConfig()
    value: PlacementConfig = PlacementConfig()
    reference: PlacementConfig = PlacementConfig()
    reward: PlacementConfig = PlacementConfig()
    rollout: PlacementConfig = PlacementConfig(workers=2)
    reward_terms: PlacementConfig = PlacementConfig()
    """Workers that call the terms of `ppo.rewards` that are one's own; they share GPUs with nobody."""
