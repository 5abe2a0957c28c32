"""New worker processes for several groups: places, actors, imports, workers; all of them or none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cai_dist.cluster import node_watch
from cai_dist.cluster.actor import Arrival, WorkerHost, asked
from cai_dist.cluster.environment import worker_environment
from cai_dist.cluster.futures import UNKNOWN, Call, all_done, gather
from cai_dist.cluster.group import Member, Starter, Starting, WorkerGroup
from cai_dist.cluster.node_watch import WorkerAddress, WorkerRegistry
from cai_dist.cluster.placement import GroupSpec, Placement, WorkerPlacement, gpu_fraction, place, release, sharing
from cai_dist.config.run import ClusterConfig
from cai_dist.errors import WorkerDied
from cai_dist.types import RankInfo


class Launch:
    """The start of the groups of `specs`: `begin`, then `finish`, or `give_back` where either has raised.

    `local`: the cluster is of this machine alone. `roster`: all workers of the same `Cluster.launch`.
    """

    def __init__(self, specs: Sequence[GroupSpec], config: ClusterConfig, local: bool, roster: WorkerRegistry) -> None:
        self._specs, self._config, self._local, self._roster = specs, config, local, roster
        self._groups = sharing(specs)
        self._placements: dict[str, Placement] = {}
        self._actors: dict[str, list[Any]] = {}
        self._importing: dict[tuple[str, int], Call] = {}

    def begin(self) -> None:
        """Take the places, start the processes and have them import what they need (seconds: torch). Raises as
        `Cluster.launch` does."""
        timeout, strategy = self._config.timeouts.start, self._config.strategy
        self._placements = node_watch.ask_head("start", lambda: place(self._specs, timeout, strategy))
        node_watch.ask_head("start", self._start_all)
        self._importing = {
            (spec.role, rank): self._import(spec, rank)
            for spec in self._specs
            for rank in range(spec.workers)
        }  # fmt: skip

    def finish(self) -> tuple[dict[str, WorkerGroup], list[WorkerPlacement]]:
        """Construct the workers everywhere at once: role -> group, and where every worker is. Only groups that share
        GPUs are built one after the other. Raises as `Cluster.launch` does."""
        found = self._arrivals()
        for (role, rank), arrival in found.items():
            self._roster.enter(WorkerAddress(role, rank, arrival.node, arrival.node_id))
        for turn in range(max(map(len, self._groups), default=0)):
            specs = [group[turn] for group in self._groups if turn < len(group)]
            gather([call for spec in specs for call in self._build(spec, found)], self._config.timeouts.start)
        seats = self._seats()
        groups = {}
        for spec in self._specs:
            members = [
                Member(actor, found[spec.role, rank].node, found[spec.role, rank].node_id)
                for rank, actor in enumerate(self._actors[spec.role])
            ]
            placement = self._placements[spec.role]
            again = starter(spec, placement, self._config, self._local)
            groups[spec.role] = WorkerGroup(
                spec.role, members, placement, self._config.timeouts.call, again, self._roster
            )
        return groups, seats

    def give_back(self) -> None:
        """End the processes and give the places back. Raises NodeLost without a head."""

        def end_all() -> None:
            for actors in self._actors.values():
                for actor in actors:
                    ray.kill(actor, no_restart=True)
            release(self._placements)

        node_watch.ask_head("end", end_all)

    def _start_all(self) -> None:
        for group in self._groups:
            for spec in group:
                self._actors[spec.role] = [self._start(spec, rank) for rank in range(spec.workers)]

    def _start(self, spec: GroupSpec, rank: int) -> Any:
        group = next(group for group in self._groups if spec in group)
        gpus = gpu_fraction(spec, rank, group)
        return new_actor(spec, rank, self._placements[spec.role], gpus, self._config, self._local)

    def _import(self, spec: GroupSpec, rank: int) -> Call:
        collective = self._config.timeouts.collective if spec.distributed and rank == 0 else None
        actor = self._actors[spec.role][rank]
        return Call(actor.prepare.remote(spec.spec.target, collective, self._local), "start", spec.role, rank, UNKNOWN)

    def _arrivals(self) -> dict[tuple[str, int], Arrival]:
        """(role, rank) -> where it is, when all have imported. A process that dies before it has done any work of ours,
        as Ray or the system may end one while many start, is started once more."""
        deadline = time.monotonic() + self._config.timeouts.start
        specs = {spec.role: spec for spec in self._specs}
        waiting, found = dict(self._importing), {}
        again: set[tuple[str, int]] = set()
        while waiting:
            try:
                done = all_done(list(waiting.values()), deadline - time.monotonic(), together=True)
            except WorkerDied as death:
                seat = death.role, death.rank
                if seat not in waiting or seat in again:
                    raise
                again.add(seat)
                actors = self._actors[death.role]
                ray.kill(actors[death.rank], no_restart=True)
                actors[death.rank] = self._start(specs[death.role], death.rank)
                waiting[seat] = self._import(specs[death.role], death.rank)
            else:
                for call, arrival in done:
                    found[call.role, call.rank] = arrival
                    del waiting[call.role, call.rank]
        return found

    def _build(self, spec: GroupSpec, found: dict[tuple[str, int], Arrival]) -> list[Call]:
        leader, calls = found[spec.role, 0], []
        for rank, actor in enumerate(self._actors[spec.role]):
            # Ray shows each worker its own GPUs only, so the local rank is always 0.
            info = RankInfo(spec.role, rank, spec.workers, 0, leader.store, leader.port)
            refs = [actor.build.remote(spec.spec, info)]
            if spec.share:  # the next role of the group is built where this one was
                refs.append(actor.call.remote(*asked("start", "keep_on_device", ((),))))
            node = found[spec.role, rank].node
            calls += [Call(ref, "start", spec.role, rank, node, self._roster) for ref in refs]
        return calls

    def _seats(self) -> list[WorkerPlacement]:
        """Asked of the workers themselves: which device a fraction came from is Ray's decision."""
        placed = [(spec, rank, actor) for spec in self._specs for rank, actor in enumerate(self._actors[spec.role])]
        calls = [
            Call(actor.where.remote(), "start", spec.role, rank, UNKNOWN, self._roster) for spec, rank, actor in placed
        ]
        return [
            WorkerPlacement(spec.role, rank, node, gpus, spec.worker_cpus, spec.share)
            for (spec, rank, _), (node, gpus) in zip(placed, gather(calls, self._config.timeouts.start), strict=True)
        ]


def new_actor(spec: GroupSpec, rank: int, placement: Placement, gpus: float, config: ClusterConfig, local: bool) -> Any:
    """The actor of one worker, in its place; its process starts."""
    env = {} if local else worker_environment(config.first_threads, local)
    if spec.gpus == 0 and ray.cluster_resources().get("GPU"):
        env["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all GPUs visible to a worker that asked for none
    options: dict[str, Any] = {"runtime_env": {"env_vars": env}} if env else {}
    return (
        ray.remote(WorkerHost)
        .options(
            num_cpus=spec.worker_cpus,
            num_gpus=gpus,
            max_restarts=0,
            enable_task_events=False,  # a quarter of what a call costs; what workers do, the timeline says
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement.handle, placement_group_bundle_index=rank),
            **options,
        )
        .remote(spec.role, rank)
    )


def starter(spec: GroupSpec, placement: Placement, config: ClusterConfig, local: bool) -> Starter | None:
    """How a worker of `spec` is started again; None where the others could not go on with a new one."""
    if spec.distributed or spec.share:
        return None

    def start(rank: int) -> Starting:
        actor = new_actor(spec, rank, placement, spec.worker_gpus, config, local)
        node = actor.prepare.remote(spec.spec.target, None, local)
        return Starting(actor, node, actor.build.remote(spec.spec, RankInfo(spec.role, rank, spec.workers)))

    return Starter(start, config.timeouts.start)
