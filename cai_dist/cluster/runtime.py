"""The Ray cluster of a run: brought up on this machine or joined, and the worker groups started on it."""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cai_dist.cluster import node_watch
from cai_dist.cluster.actor import Arrival, WorkerHost, asked
from cai_dist.cluster.environment import worker_environment
from cai_dist.cluster.futures import UNKNOWN, Call, all_done, gather
from cai_dist.cluster.group import Member, Starter, Starting, WorkerGroup
from cai_dist.cluster.idle_workers import IdleWorkers
from cai_dist.cluster.joining import join
from cai_dist.cluster.node_watch import WorkerAddress, WorkerRegistry
from cai_dist.cluster.placement import GroupSpec, Placement, WorkerPlacement, gpu_fraction, place, release, sharing
from cai_dist.config.run import ClusterConfig
from cai_dist.errors import ConfigError, NodeLost, WorkerDied, WorkerTimeout
from cai_dist.types import RankInfo

__all__ = ["Cluster", "GroupSpec"]

_STARTS = 3
"""Times that Ray is started on this machine before that is given up."""
_Start = Callable[[GroupSpec, int], Any]
"""A worker's new actor, by its rank."""


class Cluster:
    """Context manager. A local cluster ends with it; of a joined one only our actors do.

    `needed_cpus`: logical CPUs that a local cluster gets at least, where `cluster.num_cpus` does not say. Logical CPUs
    only count placements; how many threads a worker runs is `cluster.threads`. Signal handlers are left as they were.
    Raises ConfigError if no cluster answers at `cluster.address`.
    """

    def __init__(self, config: ClusterConfig, needed_cpus: float = 0.0) -> None:
        self._config, self._needed_cpus = config, needed_cpus
        self._local = config.address == "local"
        self._groups: list[WorkerGroup] = []
        self._idle = IdleWorkers()
        self._outer_env: dict[str, str | None] = {}
        self.seats: list[WorkerPlacement] = []
        """Where the workers of the last `launch` are."""

    def __enter__(self) -> Cluster:
        handler = signal.getsignal(signal.SIGTERM)
        self._set_env({"RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0")})
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._local:
            self._start_local(common)
        else:
            self._join(common)
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)  # ray.init() puts its own in place
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for group in self._groups:
            with contextlib.suppress(NodeLost):  # what is to be said of that has been said, or the run is over
                group.close()
        self._groups.clear()
        self._idle.close()
        self._leave()
        for name, value in self._outer_env.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._outer_env.clear()

    def launch(self, specs: Sequence[GroupSpec]) -> dict[str, WorkerGroup]:
        """Start several groups at the same time (importing torch takes each worker seconds); role -> group. Only those
        that share GPUs are built one after the other: each gives its memory up before the next one takes some.
        A single group begins in the processes of one that was given to `keep`, where it fits.

        Raises: ConfigError if the cluster is too small, WorkerTimeout if they are not up within `timeouts.start`,
            WorkerError or UserError if a worker cannot be built. Nothing stays behind then.
        """
        timeout = self._config.timeouts.start
        if len(specs) == 1 and (group := self._again(specs[0])) is not None:
            return {group.role: group}
        self._idle.close()
        placements = node_watch.ask_head("start", lambda: place(specs, timeout, self._config.strategy))
        groups_of = {spec.role: group for group in sharing(specs) for spec in group}

        def start(spec: GroupSpec, rank: int) -> Any:
            return self._actor(spec, rank, placements[spec.role], gpu_fraction(spec, rank, groups_of[spec.role]))

        def start_all() -> dict[str, list[Any]]:
            every = [spec for group in sharing(specs) for spec in group]
            return {spec.role: [start(spec, rank) for rank in range(spec.workers)] for spec in every}

        actors = node_watch.ask_head("start", start_all)
        roster = WorkerRegistry()
        try:
            members = self._build(specs, actors, start, roster, timeout)
            seats = self._seats(specs, actors, roster, timeout)
        except BaseException:
            with contextlib.suppress(NodeLost):
                node_watch.ask_head("end", lambda: _give_back(actors, placements))
            raise
        groups = {
            spec.role: WorkerGroup(
                spec.role, members[spec.role], placements[spec.role], self._config.timeouts.call,
                self._starter(spec, placements[spec.role]), roster,
            )
            for spec in specs
        }  # fmt: skip
        self._groups += groups.values()
        self.seats = seats
        return groups

    def keep(self, group: WorkerGroup, spec: GroupSpec) -> None:
        """End `group`, which `launch` started from `spec` and whose calls have all ended, in place of `group.close()`.
        On a local cluster its processes wait for the next group, unless they hold GPUs: those are to be free again."""
        if self._local and not spec.gpus and not spec.share and not spec.spec.yields:
            self._groups.remove(group)
            self._idle.keep(group, spec)
        else:
            group.close()

    def _again(self, spec: GroupSpec) -> WorkerGroup | None:
        group = self._idle.take(spec, self._config.timeouts, lambda placement: self._starter(spec, placement))
        if group is not None:
            self._groups.append(group)
            self.seats = [
                WorkerPlacement(spec.role, rank, member.node, (), spec.cpus, "")
                for rank, member in enumerate(group.members)
            ]
        return group

    # ---- bringing up

    def _start_local(self, common: dict[str, Any]) -> None:
        # Ray listens on all interfaces, so a new cluster asks for a token (ray.init sets RAY_AUTH_MODE=token unless the
        # user did): one of our own, for this run only, and ~/.ray stays as it is.
        if os.environ.get("RAY_AUTH_MODE", "token") == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Set here, the environment reaches the processes that Ray starts ahead of time; set per actor, each actor would
        # wait for a new one.
        self._set_env(worker_environment(self._config.threads, self._local))
        cpus = self._config.num_cpus or max(os.cpu_count() or 1, self._needed_cpus)
        store = self._config.object_store_mb
        _init(
            num_cpus=math.ceil(cpus),
            include_dashboard=False,
            object_store_memory=store * 2**20 if store else None,
            **common,
        )

    def _join(self, common: dict[str, Any]) -> None:
        try:
            join(self._config.address, **common)
        except ConfigError as error:
            raise ConfigError(f"cluster.address={self._config.address}: {error}") from error
        node_watch.start(str(ray.get_runtime_context().gcs_address))

    def _leave(self) -> None:
        """Take this process out of the cluster. Without a head Ray cannot do that, nor end in order (it waits, then it
        crashes): this process then ends without its help, with the exit code that a lost head has."""
        watch = node_watch.current()
        headless = watch is not None and watch.headless
        node_watch.stop()
        if not headless:
            ray.shutdown()
            return
        atexit.unregister(ray.shutdown)
        atexit.register(_end_at_once)

    # ---- starting workers

    def _actor(self, spec: GroupSpec, rank: int, placement: Placement, gpus: float) -> Any:
        env = {} if self._local else worker_environment(self._config.threads, self._local)
        if spec.gpus == 0 and ray.cluster_resources().get("GPU"):
            env["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all GPUs visible to a worker that asked for none
        options: dict[str, Any] = {"runtime_env": {"env_vars": env}} if env else {}
        return (
            ray.remote(WorkerHost)
            .options(
                num_cpus=spec.cpus,
                num_gpus=gpus,
                max_restarts=0,
                enable_task_events=False,  # a quarter of what a call costs; what workers do, the timeline says
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement.handle, placement_group_bundle_index=rank
                ),
                **options,
            )
            .remote(spec.role, rank)
        )

    def _starter(self, spec: GroupSpec, placement: Placement) -> Starter | None:
        """How a worker of `spec` is started again; None where the others could not go on with a new one."""
        if spec.distributed or spec.share:
            return None

        def start(rank: int) -> Starting:
            actor = self._actor(spec, rank, placement, spec.gpus)
            node = actor.prepare.remote(spec.spec.target, None, self._local)
            return Starting(actor, node, actor.build.remote(spec.spec, RankInfo(spec.role, rank, spec.workers)))

        return Starter(start, self._config.timeouts.start)

    def _set_env(self, values: dict[str, str]) -> None:
        """In this process and the children to come, until the cluster ends."""
        for name, value in values.items():
            self._outer_env.setdefault(name, os.environ.get(name))
            os.environ[name] = value

    def _arrivals(
        self, specs: Sequence[GroupSpec], actors: dict[str, list[Any]], start: _Start, timeout: float
    ) -> dict[tuple[str, int], Arrival]:
        """Import everywhere at once; (role, rank) -> where it is. A process that dies before it has done any work of
        ours, as Ray or the system may end one while many start, is started once more (`actors` has the new one)."""
        deadline = time.monotonic() + timeout
        role_specs = {spec.role: spec for spec in specs}
        waiting = {
            (spec.role, rank): self._prepare(spec, rank, actor)
            for spec in specs
            for rank, actor in enumerate(actors[spec.role])
        }
        found: dict[tuple[str, int], Arrival] = {}
        again: set[tuple[str, int]] = set()
        while waiting:
            try:
                done = all_done(list(waiting.values()), deadline - time.monotonic(), together=True)
            except WorkerDied as death:
                place = death.role, death.rank
                if place not in waiting or place in again:
                    raise
                again.add(place)
                ray.kill(actors[death.role][death.rank], no_restart=True)
                actors[death.role][death.rank] = actor = start(role_specs[death.role], death.rank)
                waiting[place] = self._prepare(role_specs[death.role], death.rank, actor)
            else:
                for call, arrival in done:
                    found[call.role, call.rank] = arrival
                    del waiting[call.role, call.rank]
        return found

    def _prepare(self, spec: GroupSpec, rank: int, actor: Any) -> Call:
        collective = self._config.timeouts.collective if spec.distributed and rank == 0 else None
        return Call(actor.prepare.remote(spec.spec.target, collective, self._local), "start", spec.role, rank, UNKNOWN)

    def _build(
        self,
        specs: Sequence[GroupSpec],
        actors: dict[str, list[Any]],
        start: _Start,
        roster: WorkerRegistry,
        timeout: float,
    ) -> dict[str, list[Member]]:
        """Learn the addresses, then construct everywhere at once."""
        found = self._arrivals(specs, actors, start, timeout)
        for (role, rank), arrival in found.items():
            roster.enter(WorkerAddress(role, rank, arrival.node, arrival.node_id))
        groups = sharing(specs)
        for turn in range(max(len(group) for group in groups)):
            calls = []
            for spec in (group[turn] for group in groups if turn < len(group)):
                leader = found[spec.role, 0]
                for rank, actor in enumerate(actors[spec.role]):
                    # Ray shows each worker its own GPUs only, so the local rank is always 0.
                    info = RankInfo(spec.role, rank, spec.workers, 0, leader.store, leader.port)
                    refs = [actor.build.remote(spec.spec, info)]
                    if spec.share:  # the next role of the group is built where this one was
                        refs.append(actor.call.remote(*asked("start", "keep_on_device", ((),))))
                    node = found[spec.role, rank].node
                    calls += [Call(ref, "start", spec.role, rank, node, roster) for ref in refs]
            gather(calls, timeout)
        return {
            spec.role: [
                Member(actor, found[spec.role, rank].node, found[spec.role, rank].node_id)
                for rank, actor in enumerate(actors[spec.role])
            ]
            for spec in specs
        }

    def _seats(
        self, specs: Sequence[GroupSpec], actors: dict[str, list[Any]], roster: WorkerRegistry, timeout: float
    ) -> list[WorkerPlacement]:
        """Asked of the workers themselves: which device a fraction came from is Ray's decision."""
        placed = [(spec, rank, actor) for spec in specs for rank, actor in enumerate(actors[spec.role])]
        calls = [Call(actor.where.remote(), "start", spec.role, rank, UNKNOWN, roster) for spec, rank, actor in placed]
        return [
            WorkerPlacement(spec.role, rank, node, gpus, spec.cpus, spec.share)
            for (spec, rank, _), (node, gpus) in zip(placed, gather(calls, timeout), strict=True)
        ]


def _init(**settings: Any) -> None:
    """Ray on this machine. It gives its own processes 30 seconds, which a busy machine may not have had: then it is
    tried again. Raises WorkerTimeout."""
    for tries_left in reversed(range(_STARTS)):
        try:
            ray.init(address="local", **settings)
            return
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if not tries_left:
                cause = (
                    f"Ray did not come up in {_STARTS} tries of 30 s; the machine is too busy, or its memory is full"
                )
                raise WorkerTimeout("start", "cluster", -1, "this machine", cause) from error


def _give_back(actors: Mapping[str, Sequence[Any]], placements: Mapping[str, Placement]) -> None:
    for group in actors.values():
        for actor in group:
            ray.kill(actor, no_restart=True)
    release(placements)


def _end_at_once() -> None:
    """The last thing that this process does."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(NodeLost.exit_code)
