"""Offloading: who has memory on a shared GPU in which phase, and the memory that every worker took.

    phase      weights on the GPU                     with the optimiser's states
    transfer   policy, rollout                        -
    rollout    rollout                                -
    score      policy, value, reference, reward       -
    update     policy, value                          policy, value

Between two phases, first everything leaves that the next one does not need, on all workers of the group; only then
something comes. A group in which no role works in a phase stays as it is: nobody needs its room. A rollout engine that
has left has lost its weights, so each iteration goes transfer, rollout, score, update, transfer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cai_dist.types import PHASE_NEEDS, MemoryPart, Phase


class OffloadCall(Protocol):
    """Calls under way, as `cai_dist.cluster.futures.PendingCalls`."""

    def result(self) -> list[Any]: ...


class OffloadTarget(Protocol):
    """What is asked of a worker group (`cai_dist.cluster.group.WorkerGroup`)."""

    def __len__(self) -> int: ...
    def start(self, phase: str, method: str, shards: Sequence[Any], *args: Any) -> OffloadCall: ...


class OffloadPlan:
    """`groups`: the worker groups by role, those of `shared` started without memory on the GPU (`GroupSpec.share`)."""

    def __init__(self, groups: Mapping[str, OffloadTarget], shared: Sequence[Sequence[str]]) -> None:
        self._groups, self._shared = groups, [tuple(group) for group in shared]
        self._resident: dict[str, tuple[MemoryPart, ...]] = {role: () for group in shared for role in group}
        self._notes: dict[str, str] = {}

    def enter(self, phase: Phase) -> None:
        """Make room for `phase`, then fill it. Waits for the calls that the workers of shared groups still have to do.

        Raises: WorkerError or WorkerTimeout.
        """
        groups = [group for group in self._shared if any(role in PHASE_NEEDS[phase] for role in group)]
        wanted = {role: PHASE_NEEDS[phase].get(role, ()) for group in groups for role in group}
        # All are told, not only those that had more: a call such as `export` brings back what it needs by itself.
        self._move({role: tuple(p for p in self._resident[role] if p in parts) for role, parts in wanted.items()})
        self._move({role: parts for role, parts in wanted.items() if parts != self._resident[role]})

    def keeps_rollout(self, phase: Phase) -> bool:
        """Whether the rollout workers have kept their weights once `phase` has been entered."""
        return not any("rollout" in group and set(group) & set(PHASE_NEEDS[phase]) for group in self._shared) or (
            "rollout" in PHASE_NEEDS[phase]
        )

    @property
    def notes(self) -> list[str]:
        """One line for each part of a role that could not leave the GPU."""
        return list(self._notes.values())

    def _move(self, parts: Mapping[str, tuple[MemoryPart, ...]]) -> None:
        waits = {
            role: self._groups[role].start("make room", "keep_on_device", [wanted] * len(self._groups[role]))
            for role, wanted in parts.items()
        }
        for role, wait in waits.items():
            for left in wait.result():
                for part, size in left.items():
                    line = f"{role}: {size:.1f} MiB of its {part} stay where they are: memory that cannot be given up"
                    self._notes.setdefault(f"{role} {part}", line)
            self._resident[role] = parts[role]
