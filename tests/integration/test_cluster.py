"""Groups under load, in trouble and out of time: every failure is named, and nothing waits for ever."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cai_dist.cluster.group import WorkerGroup
from cai_dist.cluster.runtime import Cluster, GroupSpec
from cai_dist.cluster.work_queue import WorkQueue
from cai_dist.config.run import ClusterConfig, TimeoutsConfig
from cai_dist.data.schedule import MicroBatchLimits, plan_schedule
from cai_dist.errors import ConfigError, DataError, WorkerError, WorkerTimeout
from cai_dist.types import StepShard, TokenSequence, WorkerSpec
from tests.integration.fragile import deaths
from tests.tiny import save_llama

TROUBLE = WorkerSpec("tests.integration.lab:Trouble", {})


@pytest.fixture
def pair(cluster: Cluster) -> Iterator[WorkerGroup]:
    group = cluster.launch([GroupSpec("pair", TROUBLE, workers=2, cpus=0.1)])["pair"]
    yield group
    group.close()


def test_results_come_in_order_of_shards_and_items(pair: WorkerGroup) -> None:
    assert pair.scatter("p", "echo", ["x", "y"]) == [(0, "x"), (1, "y")]
    assert pair.broadcast("p", "echo", 5) == [(0, 5), (1, 5)]
    assert [item for _, item in pair.deal("p", "echo", list("abcde")).result()] == list("abcde")
    assert pair.start("p", "echo", [1, 2]).then(len).result() == 2
    with pytest.raises(ValueError, match="3 shards for 2 workers"):
        pair.scatter("p", "echo", [1, 2, 3])


def test_a_queue_gives_each_item_once_to_whoever_is_free(pair: WorkerGroup, tmp_path: Path) -> None:
    # Item 0 holds its worker until item 3 has run: that works only if the other worker takes 1, 2 and 3.
    last = str(tmp_path / "last")
    items = {"a": ("", last), "b": ("", ""), "c": ("", ""), "d": (last, "")}
    found = list(WorkQueue(pair, retries=0).map("p", "meet", items))
    assert sorted(key for key, _ in found) == ["a", "b", "c", "d"]
    assert dict(found)["d"] == last


def test_a_killed_worker_is_named(pair: WorkerGroup) -> None:
    with pytest.raises(WorkerError, match=r"phase generate: pair\[1\].*died") as caught:
        pair.scatter("generate", "act", ["ok", "die"])
    assert (caught.value.role, caught.value.rank, caught.value.phase) == ("pair", 1, "generate")
    assert caught.value.node


def test_a_failure_is_raised_before_the_others_are_done(pair: WorkerGroup) -> None:
    # Rank 1 sleeps past every deadline: had the group waited for it, this would be a WorkerTimeout.
    with pytest.raises(WorkerError, match=r"pair\[0\].*weight version 7.*KeyError: 'no such thing'") as caught:
        pair.scatter("p", "act", ["fail", "sleep"])
    assert not isinstance(caught.value, WorkerTimeout)
    assert "lab.py" in caught.value.detail and "raise KeyError" in caught.value.detail


def test_a_users_mistake_travels_as_it_is(pair: WorkerGroup) -> None:
    with pytest.raises(DataError, match="^prompts.jsonl:3: not JSON$") as caught:
        pair.scatter("p", "act", ["ok", "mistake"])
    assert type(caught.value) is DataError and caught.value.exit_code == 2


def test_a_wait_has_a_deadline(pair: WorkerGroup) -> None:
    pair.timeout = 0.5
    with pytest.raises(WorkerTimeout, match=r"phase p: pair\[1\].*no answer in time from rank 1"):
        pair.scatter("p", "act", ["ok", "sleep"])


def test_a_worker_that_cannot_be_built_leaves_nothing_behind(cluster: Cluster) -> None:
    broken = WorkerSpec(TROUBLE.target, {"explode": True})
    for _ in range(2):  # the same resources can be had again
        with pytest.raises(WorkerError, match=r"phase start: bad\[\d\].*RuntimeError: cannot be built"):
            cluster.launch([GroupSpec("bad", broken, workers=2, cpus=2.0)])


def test_asking_for_more_than_there_is_says_so(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match=r"asked for 2 x big \(1 CPU, 4 GPU\) but the cluster has 0 GPU of 8 asked"):
        cluster.launch([GroupSpec("big", TROUBLE, workers=2, cpus=1.0, gpus=4.0)])


def test_waiting_for_resources_that_others_hold_ends(cluster: Cluster) -> None:
    impatient = Cluster(ClusterConfig(timeouts=TimeoutsConfig(start=1.5)))  # same Ray, shorter deadline
    held = cluster.launch([GroupSpec("holder", TROUBLE, workers=1, cpus=6.0)])["holder"]
    try:
        with pytest.raises(WorkerTimeout, match=r"late.*asked for 1 x late \(4 CPU\), not granted within 1.5 s"):
            impatient.launch([GroupSpec("late", TROUBLE, workers=1, cpus=4.0)])
    finally:
        held.close()


def test_signal_handlers_stay_the_callers(cluster: Cluster) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_rank_killed_inside_a_collective_is_the_one_that_is_named(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = save_llama(tmp_path_factory.mktemp("model"), tied=True, seed=0)
    spec = GroupSpec("ranks", WorkerSpec("tests.integration.lab:Bench", {}), workers=2, cpus=0.1, distributed=True)
    group = cluster.launch([spec])["ranks"]
    try:
        from tests.integration.train_bench import TrainBench

        bench = TrainBench({2: group}, tmp_path_factory.mktemp("bench"))
        bench.make("language:LanguageWorker", model, ranks=2, zero=3, micro_batch=2)
        items = [TokenSequence((1, 2, 3), (0.0, 1.0, 1.0))] * 4
        shards = [StepShard(micro, 8.0) for micro in plan_schedule([3] * 4, 2, MicroBatchLimits(2)).split(items)]
        with pytest.raises(WorkerError, match=r"phase sft: ranks\[1\].*died") as caught:
            group.scatter("sft", "crash_in_step", shards, 1)
        assert caught.value.rank == 1
    finally:
        group.close()


@pytest.mark.parametrize("times", [1, 2])
def test_a_worker_that_dies_before_it_has_begun_is_started_once_more(cluster: Cluster, times: int) -> None:
    """Ray and the system end processes where many start; one that dies again is not waited for."""
    folder = deaths()
    folder.mkdir()
    spec = GroupSpec("fragile", WorkerSpec("tests.integration.fragile:Fragile", {}), cpus=0.1)
    try:
        for number in range(times):
            (folder / str(number)).touch()
        if times == 2:
            with pytest.raises(WorkerError, match=r"phase start: fragile\[0\].*died"):
                cluster.launch([spec])
        else:
            group = cluster.launch([spec])["fragile"]
            assert group.broadcast("p", "rank") == [0]
            group.close()
        assert list(folder.iterdir()) == []
    finally:
        shutil.rmtree(folder)
