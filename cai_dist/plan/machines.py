"""Workers on GPUs and nodes, and whether they fit there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cai_dist.plan.workers import PHASES, WorkerEstimate

HEADROOM = 0.10
"""Share of a device or of a host that a plan leaves free: allocators fragment, sequences differ in length."""
Verdict = Literal["fits", "tight", "does not fit"]


@dataclass(frozen=True)
class Machines:
    """What there is. `gpu_memory`, `cpu_memory`: bytes of one GPU and of one node; `cpus`: logical CPUs of one node;
    None: not known, not judged."""

    nodes: int = 1
    gpus: int = 0
    gpu_memory: int | None = None
    cpu_memory: int | None = None
    cpus: int | None = None


@dataclass(frozen=True)
class PlannedSeat:
    """One worker at one place: `worker` with the number `rank` among its like."""

    worker: WorkerEstimate
    rank: int


@dataclass(frozen=True)
class Load:
    """Everything on one GPU, or on one node's host, by phase. `limit` in bytes; None: not known."""

    name: str
    who: tuple[str, ...]
    phases: Mapping[str, int]
    limit: int | None

    @property
    def peak(self) -> int:
        """Bytes of the fullest phase."""
        return max(self.phases.values(), default=0)

    @property
    def fullest(self) -> str:
        """The phase of the peak."""
        return max(self.phases, key=lambda phase: self.phases[phase], default="")

    @property
    def verdict(self) -> Verdict | None:
        """None where the limit is not known."""
        if self.limit is None:
            return None
        if self.peak > self.limit:
            return "does not fit"
        return "fits" if self.peak <= (1 - HEADROOM) * self.limit else "tight"


@dataclass(frozen=True)
class Loads:
    """The loads of one stage: its GPUs, its hosts, and how many GPUs it asks for in all."""

    gpus: tuple[Load, ...]
    hosts: tuple[Load, ...]
    needed_gpus: int

    @property
    def all(self) -> tuple[Load, ...]:
        """GPUs and hosts."""
        return (*self.gpus, *self.hosts)


def place(workers: Sequence[WorkerEstimate], groups: Sequence[Sequence[str]], machines: Machines) -> Loads:
    """Where workers stand, as `cluster.placement` asks for it: roles of one of `groups` side by side, one GPU to a
    place; a role of its own one GPU a worker (or several), fractions of a GPU together on one.

    Places fill node after node. Without GPUs the workers are dealt out over the nodes.
    """
    places = _places(workers, groups)
    gpus = [
        Load(f"GPU {number}", _names(seats), _by_phase(seats, on_host=False), machines.gpu_memory)
        for number, seats in enumerate(places)
    ]
    whole = sum(math.ceil(max(seat.worker.gpus for seat in seats)) for seats in places)
    hosts = _hosts(workers, places, machines)
    return Loads(tuple(gpus), tuple(hosts), whole)


def _places(workers: Sequence[WorkerEstimate], groups: Sequence[Sequence[str]]) -> list[list[PlannedSeat]]:
    """Who stands on which GPU."""
    found: list[list[PlannedSeat]] = []
    by_role = {worker.role: worker for worker in workers if worker.gpus}
    for group in groups:
        there = [by_role.pop(role) for role in group if role in by_role]
        for index in range(max((worker.count for worker in there), default=0)):
            found.append([PlannedSeat(worker, index) for worker in there if index < worker.count])
    open_places: list[list[PlannedSeat]] = []
    for worker in by_role.values():
        for index in range(worker.count):
            seat = PlannedSeat(worker, index)
            room = (p for p in open_places if sum(s.worker.gpus for s in p) + worker.gpus <= 1 + 1e-9)
            free = next(room, None) if worker.gpus < 1 else None
            if free is not None:
                free.append(seat)
            else:
                open_places.append([seat])
    return found + open_places


def _hosts(
    workers: Sequence[WorkerEstimate], places: Sequence[Sequence[PlannedSeat]], machines: Machines
) -> list[Load]:
    nodes: list[list[PlannedSeat]] = [[] for _ in range(machines.nodes)]
    per_node = machines.gpus or math.ceil(len(places) / machines.nodes) or 1
    for number, seats in enumerate(places):
        nodes[min(number // per_node, machines.nodes - 1)] += seats
    rest = [PlannedSeat(worker, index) for worker in workers if not worker.gpus for index in range(worker.count)]
    for number, seat in enumerate(rest):
        nodes[number % machines.nodes].append(seat)
    loads = [
        Load(f"host {number}", _names(seats), _by_phase(seats, on_host=True), machines.cpu_memory)
        for number, seats in enumerate(nodes)
    ]
    return [load for load in loads if load.who]


def _names(seats: Sequence[PlannedSeat]) -> tuple[str, ...]:
    return tuple(f"{seat.worker.role}[{seat.rank}]" for seat in seats)


def _by_phase(seats: Sequence[PlannedSeat], on_host: bool) -> dict[str, int]:
    """Sums over the workers. Roles that share a GPU are built one after the other: at the start it has only one of them
    whole. A process on a CPU keeps what it once took (its allocator does not give it back): there every phase is the
    peak."""
    found: dict[str, int] = {}
    for phase in PHASES:
        sizes = [_size(seat.worker, phase, on_host) for seat in seats]
        alone = phase == "start" and not on_host and any(seat.worker.shares for seat in seats)
        found[phase] = max(sizes, default=0) if alone else sum(sizes)
    return {phase: size for phase, size in found.items() if size}


def _size(worker: WorkerEstimate, phase: str, on_host: bool) -> int:
    if on_host and not worker.host:
        return worker.peak()
    return sum((worker.host if on_host else worker.device).get(phase, {}).values())
