"""Workers of the data stages that are killed, kill themselves or hang: the run goes on, or one line says why not."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cai_dist.cluster.group import WorkerGroup
from cai_dist.cluster.runtime import Cluster, GroupSpec
from cai_dist.cluster.work_queue import Loss, WorkQueue
from cai_dist.config.run import RunConfig
from cai_dist.constitution import load_constitution
from cai_dist.errors import WorkerDied
from cai_dist.stages.context import RunContext
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.stages.execution.worker_groups import rollout_group
from cai_dist.stages.revise import stage_reviser
from cai_dist.tracking.console import Console
from cai_dist.tracking.manifest import Manifest
from cai_dist.tracking.metrics import Tracker, read_metrics
from cai_dist.types import Prompt, Turn, WorkerSpec
from cai_dist.world.build import write_initial_model

TROUBLE = WorkerSpec("tests.integration.lab:Trouble", {})


@pytest.fixture
def pair(cluster: Cluster) -> Iterator[WorkerGroup]:
    group = cluster.launch([GroupSpec("pair", TROUBLE, workers=2, cpus=0.1)])["pair"]
    yield group
    group.close()


@pytest.mark.parametrize("how", ["die", "sleep"])
def test_a_worker_that_dies_or_hangs_is_replaced(pair: WorkerGroup, tmp_path: Path, how: str) -> None:
    losses: list[Loss] = []
    queue = WorkQueue(pair, 1, lost=losses.append)
    pids = dict(queue.map("p", "once", {f"warm {i}": (str(tmp_path), "") for i in range(2)}))
    pair.timeout = 3.0 if how == "sleep" else 60.0
    items = {"bad": (str(tmp_path / "mark"), how)} | {f"good {i}": (str(tmp_path), "") for i in range(4)}
    found = list(queue.map("revise: answer", "once", items))
    assert sorted(key for key, _ in found) == sorted(items)
    [loss] = losses
    assert loss.rank in (0, 1) and loss.node and loss.again
    assert ("died" if how == "die" else "timeouts.call") in loss.cause and "revise: answer, bad" in loss.cause
    # The place is taken by a new process that works like the others.
    pair.timeout = 60.0
    meeting = [str(tmp_path / name) for name in "xy"]
    assert len(list(queue.map("p", "meet", {"x": (meeting[0], meeting[1]), "y": (meeting[1], meeting[0])}))) == 2
    now = [ray.get(member.actor.__ray_call__.remote(lambda self: os.getpid()), timeout=30)
           for member in pair._members.values()]  # fmt: skip
    assert len(set(now)) == 2 and set(now) != set(pids.values())


def test_an_item_that_kills_every_worker_is_named_within_seconds(pair: WorkerGroup) -> None:
    got = []
    with pytest.raises(WorkerDied) as caught:
        for key, _ in WorkQueue(pair, 2).map("revise: answer", "act", {"shard 0": "ok", "shard 1": "die"}):
            got.append(key)
    assert got == ["shard 0"] and caught.value.exit_code == 1
    line = str(caught.value)
    assert line.startswith("phase revise: answer, shard 1: pair[") and "given to 3 workers" in line and "\n" not in line


def test_a_killed_rollout_worker_changes_no_byte(
    cluster: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two workers revise 12 prompts in shards of 2; one of them is killed with a shard in its hands."""
    config = RunConfig.model_validate(
        {"name": "t", "constitution": "micro", "tracking": {"wandb": "off"}, "cluster": {"cpus": 0.1},
         "revise": {"rounds": 1, "few_shot": 0, "retries": 0, "shard_size": 2, "sampling": {"max_new_tokens": 24}}}
    )  # fmt: skip
    model = tmp_path / "model"
    model.mkdir()
    write_initial_model(config.world, 0, model)
    victims: list[int] = []
    shards = 0

    def look() -> bool:
        """Between two shards, when both workers have the next one."""
        nonlocal shards
        shards += 1
        if victims and shards == 2:
            os.kill(victims.pop(), signal.SIGKILL)
        return False

    tracker = Tracker(tmp_path, config.tracking, {})
    run = RunContext(
        config, tmp_path, Manifest(tmp_path), tracker, Console("plain"), load_constitution("micro"), look,
        _cluster=cluster,
    )  # fmt: skip
    prompts = [Prompt(f"p{n}", (Turn("human", "make rope salt ?"),), "red_team") for n in range(12)]
    made = []
    with rollout_group(run, "revise", 2) as queue:
        chat = chat_format(run, str(model))
        for name in ("whole", "killed"):
            shards = 0
            folder = tmp_path / name / "revise"
            made.append(stage_reviser(run, queue, folder, str(model), chat).revise(prompts))
            if name == "whole":
                actor = queue._group._members[1].actor  # type: ignore[attr-defined]
                victims.append(ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=30))
    tracker.close()
    assert not victims and made[0] == made[1]
    files = [{p.relative_to(top): p.read_bytes() for p in top.rglob("*.parquet")} for top in
             (tmp_path / "whole", tmp_path / "killed")]  # fmt: skip
    assert len(files[0]) >= 6 and files[0] == files[1]
    assert [x["restarts"] for x in read_metrics(tmp_path) if x["stage"] == "revise_workers"] == [1]
    [told] = [line for line in capfd.readouterr().out.splitlines() if line.startswith("warning")]
    assert "revise[1] on " in told and "died" in told and "a new worker" in told
