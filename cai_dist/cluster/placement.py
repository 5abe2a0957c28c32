"""What worker groups ask of the cluster, and getting it before a deadline or saying why not.

Roles with the same `share` stand in one placement group: its bundle i holds the i-th worker of each of them, with the
sum of their CPUs and one whole GPU, of which every worker takes its fraction. Ray gives the fractions of one bundle out
of one device. All other roles have a placement group of their own, with a bundle a worker.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from cai_dist.config.demand import most_cpus
from cai_dist.config.run import RunConfig, Strategy
from cai_dist.errors import ConfigError, WorkerTimeout
from cai_dist.types import WorkerSpec

Bundle = dict[str, float]
_UNIT = 10_000
"""Ray counts fractions of a resource in these parts."""


@dataclass(frozen=True)
class GroupSpec:
    """`workers` of one role, each of `processes` with `cpus` logical CPUs and `gpus` GPUs; those of one worker are in
    one place, on one host.

    `distributed`: they are ranks of one torch.distributed group; else they do not know each other. `share`: the roles
    of one `launch` with the same name here share their GPUs, and their workers start without memory on them (see
    `cai_dist.cluster.ppo.offload_plan`); empty: this role shares with nobody.
    """

    role: str
    spec: WorkerSpec
    workers: int = 1
    cpus: float = 0.25
    gpus: float = 0.0
    distributed: bool = False
    share: str = ""
    processes: int = 1

    @property
    def worker_cpus(self) -> float:
        """Logical CPUs of one worker."""
        return self.cpus * self.processes

    @property
    def worker_gpus(self) -> float:
        """GPUs of one worker that shares with nobody."""
        return self.gpus * self.processes

    @property
    def bundle(self) -> Bundle:
        """Resources of one worker that shares with nobody."""
        return {"CPU": self.worker_cpus} | ({"GPU": self.worker_gpus} if self.gpus else {})


@dataclass(frozen=True)
class WorkerPlacement:
    """Where one worker is. `gpus`: Ray's ids of the devices that it sees; `share`: as in `GroupSpec`."""

    role: str
    rank: int
    node: str
    gpus: tuple[str, ...]
    cpus: float
    share: str


class Placement:
    """A placement group that goes back to the cluster when the last of its roles has left."""

    def __init__(self, handle: Any, roles: Sequence[str]) -> None:
        self.handle = handle
        self._roles = set(roles)

    def leave(self, role: str) -> None:
        """The workers of `role` are gone; may be called twice."""
        there = bool(self._roles)
        self._roles.discard(role)
        if there and not self._roles:
            remove_placement_group(self.handle)


def needed_cpus(config: RunConfig) -> float:
    """Logical CPUs of the stage of a run that asks for most of them: all roles of PPO, or one group of another."""
    return most_cpus(config).cpus


def sharing(specs: Sequence[GroupSpec]) -> list[list[GroupSpec]]:
    """The specs by placement group, in the order of the first of each."""
    groups: dict[str, list[GroupSpec]] = {}
    for spec in specs:
        groups.setdefault(f"share {spec.share}" if spec.share else f"role {spec.role}", []).append(spec)
    return list(groups.values())


def bundles(group: Sequence[GroupSpec]) -> list[Bundle]:
    """Bundles of the placement group of these roles; as many as the largest of them has workers."""
    if len(group) == 1:
        return [group[0].bundle] * group[0].workers
    found = []
    for index in range(max(spec.workers for spec in group)):
        there = [spec for spec in group if index < spec.workers]
        gpus = math.ceil(max(spec.gpus for spec in there))
        cpus = {"CPU": round(sum(spec.cpus for spec in there), 4)}
        found.append(cpus | ({"GPU": float(gpus)} if gpus else {}))
    return found


def gpu_fraction(spec: GroupSpec, rank: int, group: Sequence[GroupSpec]) -> float:
    """GPUs of one worker: its own, or an equal part of the one that it shares; a role that asks for none gets none."""
    if len(group) == 1 or not spec.gpus:
        return spec.worker_gpus
    there = sum(1 for other in group if other.gpus and rank < other.workers)
    return math.floor(_UNIT * bundles(group)[rank]["GPU"] / there) / _UNIT


def place(specs: Sequence[GroupSpec], timeout: float, strategy: Strategy = "pack") -> dict[str, Placement]:
    """All placement groups of `specs`, reserved together; role -> its group. `strategy`: `cluster.strategy`.

    Raises: ConfigError if the cluster could never hold them, WorkerTimeout if it does not within `timeout` seconds.
        Either says what was asked and what there is, and nothing stays reserved.
    """
    refuse_too_much(specs)
    groups = sharing(specs)
    deadline = time.monotonic() + timeout
    placements: dict[str, Placement] = {}
    for group in groups:
        made = Placement(placement_group(bundles(group), strategy=strategy.upper()), [spec.role for spec in group])
        placements |= {spec.role: made for spec in group}
    for role, placement in placements.items():
        if not placement.handle.wait(max(deadline - time.monotonic(), 0.01)):
            asked = _total(bundle for group in groups for bundle in bundles(group))
            free = _short(asked, ray.available_resources()) or "free resources, but on nodes too small for one worker"
            release(placements)
            cause = f"{_request(groups)}, not granted within {timeout:g} s; the cluster has {free}"
            raise WorkerTimeout("start", role, -1, "cluster", cause)
    return placements


def release(placements: Mapping[str, Placement]) -> None:
    """The workers of these roles are gone."""
    for role, placement in placements.items():
        placement.leave(role)


def seat_rows(seats: Sequence[WorkerPlacement]) -> list[list[str]]:
    """A table role x node x GPU: rank by rank, what it has and with whom it shares."""
    roles: dict[str, list[str]] = {}
    for seat in seats:
        if seat.share and seat.role not in roles.setdefault(seat.share, []):
            roles[seat.share].append(seat.role)
    return [
        [
            seat.role,
            str(seat.rank),
            seat.node,
            ", ".join(seat.gpus) or "-",
            f"{seat.cpus:g}",
            ", ".join(role for role in roles.get(seat.share, []) if role != seat.role) or "-",
        ]
        for seat in seats
    ]


def refuse_too_much(specs: Sequence[GroupSpec]) -> None:
    """Raise ConfigError, one line, if the cluster of this process could never hold all of `specs` at once: the sum of
    their places, or a single place that no node has. Nothing is reserved."""
    groups = sharing(specs)
    asked = _total(bundle for group in groups for bundle in bundles(group))
    if short := _short(asked, ray.cluster_resources()):
        raise ConfigError(f"{_request(groups)} but the cluster has {short}; lower workers, ranks, cpus or gpus")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for group in groups:
        for bundle in bundles(group):
            if nodes and all(_short(bundle, node) for node in nodes):
                raise ConfigError(
                    f"{_request([group])} but no node of the cluster has {_shown(bundle)}, what the workers of one "
                    "place ask for; lower cpus or gpus, or share fewer roles"
                )


def _total(asked: Any) -> Bundle:
    total: Bundle = {}
    for bundle in asked:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _short(asked: Mapping[str, float], there: Mapping[str, float]) -> str:
    """The resources that do not suffice, as text; empty if all do."""
    short = [name for name, amount in asked.items() if there.get(name, 0.0) + 1e-6 < amount]
    return ", ".join(f"{there.get(name, 0.0):g} {name} of {asked[name]:g} asked" for name in short)


def _shown(bundle: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())


def _request(groups: Sequence[Sequence[GroupSpec]]) -> str:
    parts = []
    for group in groups:
        places = bundles(group)
        shown = list(dict.fromkeys(_shown(bundle) for bundle in places))
        parts.append(f"{len(places)} x {'+'.join(spec.role for spec in group)} ({' or '.join(shown)})")
    return "asked for " + " + ".join(parts)
