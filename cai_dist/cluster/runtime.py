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
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import ray

from cai_dist.cluster import node_watch
from cai_dist.cluster.environment import worker_environment
from cai_dist.cluster.fork_server import ForkServer, can_fork
from cai_dist.cluster.group import Starter, WorkerGroup
from cai_dist.cluster.idle_workers import IdleWorkers
from cai_dist.cluster.joining import join
from cai_dist.cluster.launching import Launch, starter
from cai_dist.cluster.node_watch import WorkerRegistry
from cai_dist.cluster.placement import GroupSpec, Placement, WorkerPlacement
from cai_dist.config.run import ClusterConfig
from cai_dist.errors import ConfigError, NodeLost, WorkerDied, WorkerTimeout

__all__ = ["Cluster", "GroupSpec"]

_STARTS = 3
"""Times that Ray is started on this machine before that is given up."""


class Cluster:
    """Context manager. A local cluster ends with it; of a joined one only our actors do.

    `needed_cpus`: logical CPUs that a local cluster gets at least, where `cluster.num_cpus` does not say. Logical CPUs
    only count placements; how many threads a worker runs is `cluster.threads`. `forks`: whether workers may be forks at
    all, for an engine that cannot. Signal handlers are left as they were.
    Raises ConfigError if no cluster answers at `cluster.address`.
    """

    def __init__(self, config: ClusterConfig, needed_cpus: float = 0.0, forks: bool = True) -> None:
        self._config, self._needed_cpus = config, needed_cpus
        self._forks = forks and config.fork_workers
        self._local = config.address == "local"
        self._groups: list[WorkerGroup] = []
        self._idle = IdleWorkers()
        self._outer_env: dict[str, str | None] = {}
        self._fork_server = contextlib.ExitStack()
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
        self._fork_server.close()
        for name, value in self._outer_env.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._outer_env.clear()

    def launch(self, specs: Sequence[GroupSpec]) -> dict[str, WorkerGroup]:
        """Start several groups at the same time (importing torch takes each worker seconds); role -> group. Only those
        that share GPUs are built one after the other: each gives its memory up before the next one takes some.
        A group begins in the processes of one that was given to `keep`, where it fits.

        Raises: ConfigError if the cluster is too small, WorkerTimeout if they are not up within `timeouts.start`,
            WorkerError or UserError if a worker cannot be built. Nothing stays behind then.
        """
        roster = WorkerRegistry()

        def again(spec: GroupSpec, placement: Placement) -> Starter | None:
            return starter(spec, placement, self._config, self._local)

        claimed = self._idle.claim(specs, self._config.timeouts.call, again, roster)
        try:
            return self._start(specs, claimed, roster)
        except WorkerDied:
            if not claimed:
                raise
        self._idle.close()  # the system may have ended a process that waited: now all begin anew
        return self._start(specs, {}, WorkerRegistry())

    def _start(
        self, specs: Sequence[GroupSpec], claimed: dict[str, WorkerGroup], roster: WorkerRegistry
    ) -> dict[str, WorkerGroup]:
        """`launch`, with some groups in claimed processes."""
        new = Launch([spec for spec in specs if spec.role not in claimed], self._config, self._local, roster)
        try:
            new.begin()
            self._idle.build(claimed, specs, self._config.timeouts)  # while the others import
            started, seats = new.finish()
        except BaseException:
            with contextlib.suppress(NodeLost):
                for group in claimed.values():
                    group.close()
                new.give_back()
            raise
        self._groups += [*started.values(), *claimed.values()]
        self.seats = seats + [
            WorkerPlacement(spec.role, rank, member.node, (), spec.worker_cpus, "")
            for spec in specs
            if spec.role in claimed
            for rank, member in enumerate(claimed[spec.role].members)
        ]
        return {spec.role: (claimed | started)[spec.role] for spec in specs}

    def keep(self, group: WorkerGroup, spec: GroupSpec) -> None:
        """End `group`, which `launch` started from `spec` and whose calls have all ended, in place of `group.close()`.
        On a local cluster its processes wait for the next group, unless they hold GPUs: those are to be free again."""
        if self._local and not spec.gpus and not spec.share and not spec.spec.yields:
            self._groups.remove(group)
            self._idle.keep(group, spec)
        else:
            group.close()

    # ---- bringing up

    def _start_local(self, common: dict[str, Any]) -> None:
        # Ray listens on all interfaces, so a new cluster asks for a token (ray.init sets RAY_AUTH_MODE=token unless the
        # user did): one of our own, for this run only, and ~/.ray stays as it is.
        if os.environ.get("RAY_AUTH_MODE", "token") == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Set here, the environment reaches the processes that Ray starts ahead of time; set per actor, each actor would
        # wait for a new one.
        self._set_env(worker_environment(self._config.first_threads, self._local))
        if self._forks and can_fork():
            server = self._fork_server.enter_context(ForkServer())
            common["runtime_env"] = {"py_executable": server.executable}
        cpus = self._config.num_cpus or max(os.cpu_count() or 1, self._needed_cpus)
        store = self._config.object_store_mb
        try:
            _init(
                num_cpus=math.ceil(cpus),
                include_dashboard=False,
                object_store_memory=store * 2**20 if store else None,
                **common,
            )
        except BaseException:
            self._fork_server.close()
            raise

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

    def _set_env(self, values: dict[str, str]) -> None:
        """In this process and the children to come, until the cluster ends."""
        for name, value in values.items():
            self._outer_env.setdefault(name, os.environ.get(name))
            os.environ[name] = value


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


def _end_at_once() -> None:
    """The last thing that this process does."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(NodeLost.exit_code)
