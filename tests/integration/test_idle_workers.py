"""The processes of a group that has ended serve the next one, and never one that they do not fit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cai_dist.cluster import idle_workers
from cai_dist.cluster.group import WorkerGroup
from cai_dist.cluster.runtime import Cluster, GroupSpec
from cai_dist.errors import WorkerError
from cai_dist.types import WorkerSpec

TARGET = "tests.integration.lab:Trouble"
TROUBLE = WorkerSpec(TARGET, {})


def two(role: str = "two", **changed: object) -> GroupSpec:
    return GroupSpec(**{"role": role, "spec": TROUBLE, "workers": 2, "cpus": 0.1, **changed})  # type: ignore[arg-type]


def pids(group: WorkerGroup, folder: Path) -> list[int]:
    mark = folder / "mark"
    mark.touch()
    return list(group.broadcast("p", "once", (str(mark), "")))


def ends(pid: int) -> bool:
    """The process is gone, or goes within a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def running(cluster: Cluster) -> Iterator[Cluster]:
    yield cluster
    cluster._idle.close()


def test_the_next_group_that_fits_gets_the_processes(running: Cluster, tmp_path: Path) -> None:
    first = running.launch([two()])["two"]
    old = pids(first, tmp_path)
    running.keep(first, two())
    # Fewer workers of another role; the rest waits with them and is there for the group after it.
    one = running.launch([two("one", workers=1)])["one"]
    assert pids(one, tmp_path) == old[:1]
    assert [seat.role for seat in running.seats] == ["one"]
    with pytest.raises(WorkerError, match=r"phase p: one\[0\]"):
        one.broadcast("p", "act", "fail")
    running.keep(one, two("one", workers=1))
    again = running.launch([two("again", distributed=True)])["again"]
    assert pids(again, tmp_path) == old
    assert [rank for rank, _ in again.broadcast("p", "echo", 1)] == [0, 1]
    again.close()
    assert all(ends(pid) for pid in old)


@pytest.mark.parametrize(
    ("begun", "wanted"),
    [
        (two(workers=1), two()),
        (two(), two(cpus=0.2)),
        (two(distributed=True), two(distributed=True, workers=1)),
        (two(spec=WorkerSpec(TARGET, {}, yields=True)), two()),
    ],
    ids=["more workers", "other cpus", "ranks of a larger group", "niced"],
)
def test_what_does_not_fit_begins_anew_and_the_old_ends(
    running: Cluster, tmp_path: Path, begun: GroupSpec, wanted: GroupSpec
) -> None:
    first = running.launch([begun])["two"]
    old = pids(first, tmp_path)
    running.keep(first, begun)
    second = running.launch([wanted])["two"]
    assert not {*pids(second, tmp_path)} & {*old}
    assert all(ends(pid) for pid in old)
    second.close()


def test_of_several_groups_each_that_fits_gets_processes_and_the_rest_ends(running: Cluster, tmp_path: Path) -> None:
    begun = [two("ranks", distributed=True), two("alone", workers=1), two("other", cpus=0.2, workers=1)]
    first = running.launch(begun)
    ranks, alone, other = (pids(first[spec.role], tmp_path) for spec in begun)
    for spec in begun:
        running.keep(first[spec.role], spec)
    one = running.launch([two("one", workers=1)])["one"]
    assert pids(one, tmp_path) == alone, "the one that fits best"
    running.keep(one, two("one", workers=1))
    wanted = [two("a", workers=1), two("b", distributed=True), two("c", workers=3)]
    groups = running.launch(wanted)
    assert list(groups) == ["a", "b", "c"] and sorted(seat.role for seat in running.seats) == [*"abbccc"]
    assert pids(groups["a"], tmp_path) == alone and pids(groups["b"], tmp_path) == ranks
    assert not {*pids(groups["c"], tmp_path)} & {*ranks, *alone, *other} and all(ends(pid) for pid in other)
    assert [rank for rank, _ in groups["b"].broadcast("p", "echo", 1)] == [0, 1]
    for group in groups.values():
        group.close()


def test_a_group_that_lost_a_process_is_not_kept(running: Cluster, tmp_path: Path) -> None:
    first = running.launch([two()])["two"]
    old = pids(first, tmp_path)
    first.kill(1)
    running.keep(first, two())
    assert all(ends(pid) for pid in old)


def test_a_worker_that_does_not_answer_is_ended(
    running: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle_workers, "_REST_SECONDS", 1.0)
    first = running.launch([two()])["two"]
    old = pids(first, tmp_path)
    first.call(0, "p", "act", "sleep")
    running.keep(first, two())
    assert all(ends(pid) for pid in old)


def test_a_rank_that_was_replaced_is_not_kept(running: Cluster, tmp_path: Path) -> None:
    """The others are ranks of one group with a process that is gone."""
    first = running.launch([two(distributed=True)])["two"]
    old = pids(first, tmp_path)
    running.keep(first, two(distributed=True))
    alone = running.launch([two("alone")])["alone"]
    assert pids(alone, tmp_path) == old
    alone.kill(0)
    started = alone.start_worker(0)
    assert alone.wait([started], 60.0)
    alone.result(started)
    running.keep(alone, two("alone"))
    again = running.launch([two("again", distributed=True)])["again"]
    assert old[1] not in pids(again, tmp_path) and ends(old[1])
    again.close()


def test_a_process_that_dies_while_it_waits_is_replaced(running: Cluster, tmp_path: Path) -> None:
    first = running.launch([two()])["two"]
    old = pids(first, tmp_path)
    running.keep(first, two())
    os.kill(old[1], signal.SIGKILL)
    second = running.launch([two("again")])["again"]
    assert old[1] not in pids(second, tmp_path)
    second.close()


def test_a_worker_that_cannot_be_built_in_them_leaves_nothing_behind(running: Cluster, tmp_path: Path) -> None:
    first = running.launch([two()])["two"]
    old = pids(first, tmp_path)
    running.keep(first, two())
    with pytest.raises(WorkerError, match=r"phase start: two\[\d\].*RuntimeError: cannot be built"):
        running.launch([two(spec=WorkerSpec(TARGET, {"explode": True}))])
    assert all(ends(pid) for pid in old)
