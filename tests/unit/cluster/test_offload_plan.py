"""Who is asked to leave a shared GPU and who to come, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cai_dist.cluster.ppo.memory_log import peak_rows
from cai_dist.cluster.ppo.offload_plan import OffloadPlan
from cai_dist.types import PHASE_NEEDS, Phase

ROLES = ("policy", "value", "reference", "reward", "rollout")


class FakeCrew:
    """Two workers that note what they are asked, and hold what they were last told."""

    def __init__(self, role: str, log: list[tuple[str, tuple[str, ...]]], resident: dict[str, tuple[str, ...]]) -> None:
        self.role, self._log, self._resident = role, log, resident
        self.left: dict[str, float] = {}

    def __len__(self) -> int:
        return 2

    def start(self, phase: str, method: str, shards: Sequence[Any], *args: Any) -> FakeWait:
        assert method == "keep_on_device" and len(shards) == 2 and shards[0] == shards[1]
        self._log.append((self.role, shards[0]))
        return FakeWait(self, shards[0])

    def done(self, parts: tuple[str, ...]) -> list[dict[str, float]]:
        self._resident[self.role] = parts
        return [self.left, {}]


class FakeWait:
    def __init__(self, crew: FakeCrew, parts: tuple[str, ...]) -> None:
        self._crew, self._parts = crew, parts

    def result(self) -> list[dict[str, float]]:
        return self._crew.done(self._parts)


class Lab:
    def __init__(self, *shared: Sequence[str]) -> None:
        self.log: list[tuple[str, tuple[str, ...]]] = []
        self.resident: dict[str, tuple[str, ...]] = dict.fromkeys(ROLES, ())
        self.crews = {role: FakeCrew(role, self.log, self.resident) for role in ROLES}
        self.offload_plan = OffloadPlan(self.crews, shared)

    def enter(self, phase: Phase) -> dict[str, tuple[str, ...]]:
        self.log.clear()
        self.offload_plan.enter(phase)
        return {role: parts for role, parts in self.resident.items() if parts}


def test_each_phase_has_what_it_needs_and_nothing_else() -> None:
    lab = Lab(ROLES)
    assert lab.enter("transfer") == {"policy": ("weights",), "rollout": ("weights",)}
    assert lab.enter("rollout") == {"rollout": ("weights",)}
    assert lab.enter("score") == dict.fromkeys(("policy", "value", "reference", "reward"), ("weights",))
    assert lab.enter("update") == dict.fromkeys(("policy", "value"), ("weights", "optimizer"))
    assert lab.enter("transfer") == {"policy": ("weights",), "rollout": ("weights",)}


def test_nothing_comes_before_all_that_leave_have_left() -> None:
    lab = Lab(ROLES)
    lab.enter("rollout")
    waited: list[str] = []
    for crew in lab.crews.values():
        crew.done = lambda parts, crew=crew: (waited.append(crew.role), [{}])[1]  # type: ignore[method-assign, misc]
    lab.enter("score")
    leaving, coming = lab.log[:5], lab.log[5:]
    assert {role for role, parts in leaving if not parts} == set(ROLES)
    assert {role for role, parts in coming} == {"policy", "value", "reference", "reward"}
    assert waited[:5] == [role for role, _ in leaving]


def test_what_the_next_phase_needs_too_does_not_move() -> None:
    lab = Lab(ROLES)
    lab.enter("score")
    lab.enter("update")
    assert ("policy", ("weights",)) in lab.log and ("policy", ()) not in lab.log
    lab.enter("transfer")
    assert ("policy", ()) not in lab.log and ("policy", ("weights",)) in lab.log


def test_a_group_that_has_nothing_to_do_stays_as_it_is() -> None:
    lab = Lab(["policy", "rollout"], ["value", "reward", "reference"])
    lab.enter("score")
    lab.enter("update")
    assert lab.enter("transfer")["value"] == ("weights", "optimizer")
    assert {role for role, _ in lab.log} == {"policy", "rollout"}
    assert lab.enter("rollout")["value"] == ("weights", "optimizer")
    assert "value" not in {role for role, _ in lab.log}
    assert lab.enter("score")["value"] == ("weights",)


def test_roles_that_share_nothing_are_never_asked() -> None:
    lab = Lab()
    for phase in PHASE_NEEDS:
        lab.enter(phase)
        assert lab.log == []
    lab = Lab(["policy", "value"])
    for phase in PHASE_NEEDS:
        lab.enter(phase)
        assert {role for role, _ in lab.log} <= {"policy", "value"}


@pytest.mark.parametrize(
    ("shared", "kept"),
    [((), True), ((ROLES,), False), ((("policy", "rollout"),), False), ((("rollout", "reward"),), True)],
)
def test_whether_rollout_workers_keep_their_weights_through_a_checkpoint(shared: Any, kept: bool) -> None:
    assert Lab(*shared).offload_plan.keeps_rollout("update") is kept


def test_what_could_not_leave_is_noted_once() -> None:
    lab = Lab(ROLES)
    lab.crews["reward"].left = {"weights": 3.25}
    for phase in ("score", "update", "rollout", "score", "update"):
        lab.enter(phase)  # type: ignore[arg-type]
    assert lab.offload_plan.notes == [
        "reward: 3.2 MiB of its weights stay where they are: memory that cannot be given up"
    ]


def test_the_table_of_peaks_has_a_dash_where_nothing_was_read() -> None:
    columns, rows = peak_rows({"policy": {"score": 10.4, "update": 20.6}, "rollout": {"rollout": 5.0}})
    assert columns == ["role", "score", "update", "rollout"]
    assert rows == [["policy", "10", "21", "-"], ["rollout", "-", "-", "5"]]
