"""A cluster whose worker processes outlive a test: a new process costs seconds of imports, a new worker does not."""

from __future__ import annotations

from collections.abc import Sequence

from cai_dist.cluster.futures import UNKNOWN, Call, gather
from cai_dist.cluster.group import WorkerGroup
from cai_dist.cluster.placement import GroupSpec, WorkerPlacement
from cai_dist.cluster.runtime import Cluster
from cai_dist.errors import WorkerError
from cai_dist.types import RankInfo

Shape = tuple[str, int, float, float, bool]


class WarmCluster:
    """What `launch` of a :class:`Cluster` does, with processes of earlier launches where the role, the number of ranks
    and the resources are the same and nobody uses them. A group that is closed keeps its processes for the next one;
    each launch builds its workers anew. Groups that share GPUs are never kept.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._idle: dict[Shape, list[WorkerGroup]] = {}
        self.seats: list[WorkerPlacement] = []
        """Where the workers are that the last launch started."""

    def launch(self, specs: Sequence[GroupSpec]) -> dict[str, WorkerGroup]:
        groups: dict[str, WorkerGroup] = {}
        for spec in specs:
            if not spec.share and (group := self._again(spec)) is not None:
                groups[spec.role] = group
        cold = [spec for spec in specs if spec.role not in groups]
        self.seats = []
        if cold:
            started = self._cluster.launch(cold)
            self.seats = self._cluster.seats
            groups |= {
                spec.role: started[spec.role] if spec.share else self._lasting(spec, started[spec.role])
                for spec in cold
            }
        return {spec.role: groups[spec.role] for spec in specs}

    def keep(self, group: WorkerGroup, spec: GroupSpec) -> None:
        """As `Cluster.keep`; what is kept is decided by `launch`."""
        group.close()

    def close(self) -> None:
        for groups in self._idle.values():
            for group in groups:
                WorkerGroup.close(group)
        self._idle.clear()

    def _again(self, spec: GroupSpec) -> WorkerGroup | None:
        """An idle group of this shape with new workers in it; None where there is none that lives."""
        idle = self._idle.get(_shape(spec), [])
        while idle:
            old = idle.pop()
            members = [old._members[rank] for rank in sorted(old._members)]
            infos = [RankInfo(spec.role, rank, spec.workers) for rank in range(spec.workers)]
            try:
                if len(members) != spec.workers:
                    raise WorkerError("start", spec.role, 0, UNKNOWN, "a worker was killed")
                built = [
                    Call(member.actor.build.remote(spec.spec, info), "start", spec.role, info.rank, member.node)
                    for member, info in zip(members, infos, strict=True)
                ]
                gather(built, old.timeout)
            except WorkerError:
                WorkerGroup.close(old)
                continue
            return self._lasting(spec, WorkerGroup(spec.role, members, old._placement, old.timeout, old._starter))
        return None

    def _lasting(self, spec: GroupSpec, group: WorkerGroup) -> WorkerGroup:
        """`group`, whose end makes its processes free for the next launch."""
        groups = self._idle.setdefault(_shape(spec), [])

        def put_back() -> None:
            if group not in groups and not group._closed:
                groups.append(group)

        group.close = put_back  # type: ignore[method-assign]
        return group


def _shape(spec: GroupSpec) -> Shape:
    return spec.role, spec.workers, spec.cpus, spec.gpus, spec.distributed
