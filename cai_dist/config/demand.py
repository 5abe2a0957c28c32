"""What each stage of a run asks of a cluster at the same time: CPUs as Ray counts them, and GPUs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cai_dist.config.run import RunConfig
from cai_dist.config.stages import GENERATING, PPO, PREFERENCE, SUPERVISED


@dataclass(frozen=True)
class Demand:
    """All workers of a stage that are up together. `why`: where the CPUs come from, in words of the run file; `place`
    and `place_gpus`: CPUs of the largest place, whose workers stand on one node, and GPUs of the one with most."""

    stage: str
    why: str
    cpus: float
    gpus: int
    place: float
    place_gpus: int

    @property
    def said(self) -> str:
        """Number of CPUs, and where it comes from."""
        return f"{self.cpus:g}{', ' if self.stage == PPO else ' = '}{self.why}"


def demands(config: RunConfig) -> Iterator[Demand]:
    """One for all roles of PPO, one for each group of workers of another stage, in no order of time."""
    if PPO in config.stages:
        yield ppo_demand(config)
    cluster = config.cluster
    for stage, key, workers, processes in _groups(config):
        why = f"{key} x cluster.cpus = {workers} x {cluster.cpus:g}"
        why += f", each of {processes} processes" if processes > 1 else ""
        cpus, gpus = processes * cluster.cpus, processes * cluster.gpus
        yield Demand(stage, why, workers * cpus, _whole(workers * gpus), cpus, _whole(gpus))


def most_cpus(config: RunConfig) -> Demand:
    """The demand with most CPUs."""
    return max(demands(config), key=lambda one: one.cpus)


def demand_line(config: RunConfig) -> str:
    """The most that the run asks for, in words; slurm/ray_cluster.sh reads the CPUs from it."""
    every = list(demands(config))
    cpus, gpus = most_cpus(config), max(every, key=lambda one: one.gpus)
    place = max(one.place for one in every)
    devices = f"{gpus.gpus} GPUs ({gpus.stage})" if gpus.gpus else "no GPU"
    return f"asks for: {math.ceil(cpus.cpus)} CPUs at once ({cpus.stage}), {math.ceil(place)} in one place; {devices}"


def hardware_problems(config: RunConfig) -> Iterator[str]:
    """One line for each stage that asks for more than `cluster.hardware` has."""
    there = config.cluster.hardware
    for one in demands(config):
        if there.cpus_per_node is not None and one.cpus > there.nodes * there.cpus_per_node:
            yield (
                f"cluster.hardware: {there.nodes} x {there.cpus_per_node} CPUs, but {one.stage} asks for "
                f"{one.said} at once; lower cpus, workers or ranks, or name larger machines"
            )
        if there.gpus_per_node is not None and one.gpus > there.nodes * there.gpus_per_node:
            yield (
                f"cluster.hardware: {there.nodes} x {there.gpus_per_node} GPUs, but {one.stage} asks for {one.gpus} at "
                f"once; lower workers or ranks, let roles share (ppo.placement.mode), or name more machines"
            )
        if there.gpus_per_node is not None and one.place_gpus > there.gpus_per_node:
            yield (
                f"cluster.hardware: {there.gpus_per_node} GPUs a node, but an engine of {one.stage} is made of "
                f"{one.place_gpus} on one; lower engine.vllm.tensor_parallel or pipeline_parallel"
            )


def ppo_demand(config: RunConfig) -> Demand:
    """All roles of PPO, and the workers that call reward terms of one's own."""
    ppo, place = config.ppo, config.ppo.placement
    cpus, gpus, places, widest = 0.0, 0.0, [], 0.0
    grouped = {role for group in ppo.shared_groups for role in group}
    for group in ppo.shared_groups:
        if any(getattr(place, role).gpus for role in group):
            gpus += max(ppo.workers_of(role) for role in group)
            widest = max(widest, 1.0)
        cpus += sum(ppo.workers_of(role) * getattr(place, role).cpus for role in group)
        places.append(sum(getattr(place, role).cpus for role in group))
    terms = ("reward_terms",) if any(term.own for term in ppo.rewards) else ()
    for role in (*ppo.roles, *terms):
        if role in grouped:
            continue
        processes = config.engine.processes if role == "rollout" else 1
        one, workers = getattr(place, role), ppo.workers_of(role)
        cpus, gpus = cpus + workers * processes * one.cpus, gpus + workers * processes * one.gpus
        places.append(processes * one.cpus)
        widest = max(widest, processes * one.gpus)
    return Demand(PPO, "what ppo.placement adds up to", cpus, _whole(gpus), max(places), _whole(widest))


def _whole(gpus: float) -> int:
    return math.ceil(gpus - 1e-9)


def _groups(config: RunConfig) -> Iterator[tuple[str, str, int, int]]:
    """(stage, key of the run file, workers, processes of each) of each group of a stage other than PPO."""
    if config.uses_world:
        yield "world", "world.pretrain.sharding.ranks", config.world.pretrain.sharding.ranks, 1
    for stage in GENERATING:
        if stage in config.stages:
            yield stage, f"{stage}.workers", getattr(config, stage).workers, config.engine.processes
    for stage in SUPERVISED:
        if stage in config.stages:
            yield stage, f"{stage}.train.sharding.ranks", getattr(config, stage).train.sharding.ranks, 1
    if PREFERENCE in config.stages and config.data.ranked_answers.source != "none":
        ranks = config.preference.pretraining.train.sharding.ranks
        yield PREFERENCE, "preference.pretraining.train.sharding.ranks", ranks, 1
    if config.data.harm_ratings.source != "none":
        yield "evaluate", "evaluate.ratings.train.sharding.ranks", config.evaluate.ratings.train.sharding.ranks, 1
