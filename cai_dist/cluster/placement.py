"""What worker groups ask of the cluster, and getting it before a deadline or saying why not."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from cai_dist.config.run import RunConfig
from cai_dist.errors import ConfigError, WorkerTimeout
from cai_dist.types import WorkerSpec


@dataclass(frozen=True)
class GroupSpec:
    """`workers` processes of one role, each with `cpus` logical CPUs and `gpus` GPUs.

    `distributed`: they are ranks of one torch.distributed group; else they do not know each other.
    """

    role: str
    spec: WorkerSpec
    workers: int = 1
    cpus: float = 0.25
    gpus: float = 0.0
    distributed: bool = False

    @property
    def bundle(self) -> dict[str, float]:
        """Resources of one worker."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def needed_cpus(config: RunConfig) -> float:
    """Logical CPUs of the stage of a run that asks for most of them: all roles of PPO, or one group of another."""
    ppo = config.ppo
    together = sum(
        (getattr(ppo, role).ranks if role in ppo.trained_roles else getattr(ppo.placement, role).workers)
        * getattr(ppo.placement, role).cpus
        for role in ppo.roles
    )
    workers = max(
        config.expand.workers if "expand" in config.stages else 1,
        config.revise.workers,
        config.feedback.workers,
        config.evaluate.workers,
        config.evaluate.ratings.train.sharding.ranks if config.data.harm_ratings.source != "none" else 1,
        config.sft.train.sharding.ranks,
        config.preference.train.sharding.ranks,
        config.preference.pretraining.train.sharding.ranks if config.data.ranked_answers.source != "none" else 1,
        config.dpo.train.sharding.ranks,
        config.world.pretrain.sharding.ranks,
    )
    return max(together, workers * config.cluster.cpus)


def place(specs: Sequence[GroupSpec], timeout: float) -> dict[str, Any]:
    """One placement group per spec, all reserved together; role -> group.

    Raises: ConfigError if the cluster could never hold them, WorkerTimeout if it does not within `timeout` seconds.
        Either says what was asked and what there is, and nothing stays reserved.
    """
    asked = _total(spec.bundle for spec in specs for _ in range(spec.workers))
    if short := _short(asked, ray.cluster_resources()):
        raise ConfigError(f"{_request(specs)} but the cluster has {short}; lower workers, ranks, cpus or gpus")
    groups: dict[str, Any] = {}
    deadline = time.monotonic() + timeout
    for spec in specs:
        groups[spec.role] = placement_group([spec.bundle] * spec.workers, strategy="PACK")
    for spec in specs:
        if not groups[spec.role].wait(max(deadline - time.monotonic(), 0.01)):
            free = _short(asked, ray.available_resources()) or "free resources, but on nodes too small for one worker"
            release(groups)
            cause = f"{_request(specs)}, not granted within {timeout:g} s; the cluster has {free}"
            raise WorkerTimeout("start", spec.role, -1, "cluster", cause)
    return groups


def release(groups: Mapping[str, Any]) -> None:
    """Give placement groups back."""
    for group in groups.values():
        remove_placement_group(group)


def _total(bundles: Any) -> dict[str, float]:
    total: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _short(asked: Mapping[str, float], there: Mapping[str, float]) -> str:
    """The resources that do not suffice, as text; empty if all do."""
    short = [name for name, amount in asked.items() if there.get(name, 0.0) + 1e-6 < amount]
    return ", ".join(f"{there.get(name, 0.0):g} {name} of {asked[name]:g} asked" for name in short)


def _request(specs: Sequence[GroupSpec]) -> str:
    parts = [f"{s.workers} x {s.role} ({', '.join(f'{v:g} {k}' for k, v in s.bundle.items())})" for s in specs]
    return "asked for " + " + ".join(parts)
