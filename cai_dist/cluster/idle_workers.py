"""Worker processes between two stages: kept, because a new process imports torch for seconds and a new worker in an old
process does not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cai_dist.cluster.futures import UNKNOWN, Call, gather
from cai_dist.cluster.group import Member, Starter, WorkerGroup
from cai_dist.cluster.placement import GroupSpec, Placement
from cai_dist.config.run import TimeoutsConfig
from cai_dist.errors import NodeLost, WorkerDied, WorkerError
from cai_dist.types import RankInfo

_REST_SECONDS = 30.0
"""For a worker that has ended its work to give its memory up; one that does not answer is ended."""


@dataclass(frozen=True)
class _Idle:
    """Processes in one placement group. `ranks`: how many of them, from the first, are ranks of one torch.distributed
    group, which lasts as long as they do; 0: none has been."""

    members: list[Member]
    handle: Any
    cpus: float
    ranks: int

    def fits(self, spec: GroupSpec) -> bool:
        enough = len(self.members) >= spec.workers
        alone = spec.distributed and self.ranks not in (0, spec.workers)
        return enough and not alone and not spec.gpus and not spec.share and self.cpus == spec.cpus


class IdleWorkers:
    """The processes of groups that have ended, for the next group that they fit: as many or more, as many CPUs, no GPU,
    nothing shared. A group of ranks takes ranks of a group of that size, or processes that have been in none.

    They are of one machine, and one process at a time starts and ends groups.
    """

    def __init__(self) -> None:
        self._idle: list[_Idle] = []
        self._used: dict[WorkerGroup, _Idle] = {}

    def keep(self, group: WorkerGroup, spec: GroupSpec) -> None:
        """Take the processes of `group`, started from `spec`, whose calls have all ended. A group is closed that lost
        a process, of which one does not answer, or in which a new one stands in the place of a rank."""
        before = self._used.pop(group, None)
        members = group.members
        try:
            if len(members) != spec.workers:
                raise WorkerDied("end", spec.role, 0, UNKNOWN, "a process was lost")
            if before and before.ranks and any(a is not b for a, b in zip(members, before.members, strict=False)):
                raise WorkerDied("end", spec.role, 0, UNKNOWN, "a rank was replaced, and the others do not know it")
            calls = [Call(member.actor.rest.remote(), "end", spec.role, 0, member.node) for member in members]
            gather(calls, _REST_SECONDS)
        except WorkerError:
            group.close()
            return
        spare = before.members[len(members) :] if before else []
        ranks = spec.workers if spec.distributed else (before.ranks if before else 0)
        self._idle.append(_Idle(members + spare, group.placement.handle, spec.cpus, ranks))

    def take(
        self, spec: GroupSpec, timeouts: TimeoutsConfig, starter: Callable[[Placement], Starter | None]
    ) -> WorkerGroup | None:
        """A group of `spec` in idle processes, built; None where none fits, and all that was idle has ended. Raises as
        `Cluster.launch` does where a worker cannot be built; nothing stays behind then."""
        found = next((idle for idle in self._idle if idle.fits(spec)), None)
        if found is None:
            self.close()
            return None
        self._idle.remove(found)
        placement = Placement(found.handle, [spec.role])
        members = found.members[: spec.workers]
        group = WorkerGroup(spec.role, members, placement, timeouts.call, starter(placement))
        try:
            self._build(spec, members, None if found.ranks else timeouts.collective, timeouts.start)
        except WorkerDied:  # the system may end a process that waits
            group.close()
            self.close()
            return None
        except BaseException:
            with contextlib.suppress(NodeLost):
                group.close()
            raise
        self._used[group] = found
        return group

    def close(self) -> None:
        """End all that is idle."""
        for idle in self._idle:
            WorkerGroup("idle", idle.members, Placement(idle.handle, ["idle"]), _REST_SECONDS).close()
        self._idle.clear()

    @staticmethod
    def _build(spec: GroupSpec, members: list[Member], collective: float | None, timeout: float) -> None:
        store = collective if spec.distributed else None
        targets = [(spec.spec.target, store if rank == 0 else None, True) for rank in range(spec.workers)]
        calls = [
            Call(member.actor.prepare.remote(*target), "start", spec.role, rank, member.node)
            for rank, (member, target) in enumerate(zip(members, targets, strict=True))
        ]
        leader = gather(calls, timeout)[0]
        infos = [RankInfo(spec.role, rank, spec.workers, 0, leader.store, leader.port) for rank in range(spec.workers)]
        built = [
            Call(member.actor.build.remote(spec.spec, info), "start", spec.role, info.rank, member.node)
            for member, info in zip(members, infos, strict=True)
        ]
        gather(built, timeout)
