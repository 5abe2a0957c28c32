"""Worker processes between two stages: kept, because a new process imports torch for seconds and a new worker in an old
process does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai_dist.cluster.futures import UNKNOWN, Call, gather
from cai_dist.cluster.group import Member, Starter, WorkerGroup
from cai_dist.cluster.node_watch import WorkerRegistry
from cai_dist.cluster.placement import GroupSpec, Placement
from cai_dist.config.run import TimeoutsConfig
from cai_dist.errors import WorkerDied, WorkerError
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
        return enough and not alone and not spec.gpus and not spec.share and self.cpus == spec.worker_cpus

    def waste(self, spec: GroupSpec) -> tuple[bool, int]:
        """The less, the better it fits: ranks for ranks, then as few processes as will do."""
        return self.ranks != (spec.workers if spec.distributed else 0), len(self.members) - spec.workers


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
        self._idle.append(_Idle(members + spare, group.placement.handle, spec.worker_cpus, ranks))

    def claim(
        self,
        specs: Sequence[GroupSpec],
        timeout: float,
        starter: Callable[[GroupSpec, Placement], Starter | None],
        roster: WorkerRegistry,
    ) -> dict[str, WorkerGroup]:
        """role -> a group in idle processes, its workers to be made by `build`, for each of `specs` that some fit.
        Where one is left over, all that is still idle has ended: it needs the room. `timeout`, `roster`: of the
        groups."""
        found: dict[str, WorkerGroup] = {}
        for spec in sorted(specs, key=lambda spec: not spec.distributed):  # ranks are harder to fit
            fitting = [idle for idle in self._idle if idle.fits(spec)]
            if not fitting:
                continue
            idle = min(fitting, key=lambda idle: idle.waste(spec))
            self._idle.remove(idle)
            placement = Placement(idle.handle, [spec.role])
            members = idle.members[: spec.workers]
            group = WorkerGroup(spec.role, members, placement, timeout, starter(spec, placement), roster)
            self._used[group] = idle
            found[spec.role] = group
        if len(found) < len(specs):
            self.close()
        return found

    def build(self, claimed: Mapping[str, WorkerGroup], specs: Sequence[GroupSpec], timeouts: TimeoutsConfig) -> None:
        """Make the workers of claimed groups. Raises WorkerDied where a process has ended while it waited, as the
        system may do, and as `Cluster.launch` does where a worker cannot be built; the groups are then to be closed."""
        pairs = [(spec, claimed[spec.role]) for spec in specs if spec.role in claimed]
        preparing = []
        for spec, group in pairs:
            store = timeouts.collective if spec.distributed and not self._used[group].ranks else None
            for rank, member in enumerate(group.members):
                asked = spec.spec.target, store if rank == 0 else None, True
                preparing.append(Call(member.actor.prepare.remote(*asked), "start", spec.role, rank, member.node))
        arrivals = iter(gather(preparing, timeouts.start))
        building = []
        for spec, group in pairs:
            leader, *_ = [next(arrivals) for _ in group.members]
            for rank, member in enumerate(group.members):
                info = RankInfo(spec.role, rank, spec.workers, 0, leader.store, leader.port)
                building.append(Call(member.actor.build.remote(spec.spec, info), "start", spec.role, rank, member.node))
        gather(building, timeouts.start)

    def close(self) -> None:
        """End all that is idle."""
        for idle in self._idle:
            WorkerGroup("idle", idle.members, Placement(idle.handle, ["idle"]), _REST_SECONDS).close()
        self._idle.clear()
