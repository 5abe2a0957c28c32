"""Three hosts: the pipeline runs across them; one that is cut off is named, and the run ends in the same bytes.

Every wait has a deadline; the only bound on time is the promise itself, half a minute from the cut to the name.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.multihost.conftest import RUN, Cluster, Command
from tests.multihost.hosts import wait_for

pytestmark = [pytest.mark.multihost, pytest.mark.full, pytest.mark.timeout(1500)]

RUN_SECONDS = 900.0
NAMED_SECONDS = 30.0
NAME = "tiny"


def start(cluster: Cluster, command: list[str], runs: Path, on: str = "h0") -> Command:
    return cluster.cai_dist(*command, str(RUN), f"runs_dir={runs}", on=on)


def digests(folder: Path, kind: str) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob(kind)}


def placed(run: Path, role: str) -> list[str]:
    """Addresses of the nodes of a role of PPO, by rank."""
    workers = json.loads((run / "ppo" / "placement.json").read_text())["workers"]
    return [worker["node"] for worker in sorted(workers, key=lambda w: w["rank"]) if worker["role"] == role]


def up_to(whole: Path, runs: Path, stage: str) -> Path:
    """A copy of the finished run in which `stage` and all after it have never been begun."""
    run = runs / NAME
    shutil.copytree(whole, run)
    manifest = json.loads((run / "manifest.json").read_text())
    names = list(manifest["stages"])
    for name in names[names.index(stage) :]:
        del manifest["stages"][name]
        shutil.rmtree(run / name, ignore_errors=True)
    (run / "evaluation.json").unlink(missing_ok=True)
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


@pytest.fixture(scope="module")
def whole(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline, uninterrupted."""
    runs = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    command = start(cluster, ["run"], runs)
    assert command.ends(RUN_SECONDS) == 0, command.shown()
    print(f"\nmeasured: the pipeline over 3 hosts: {time.monotonic() - began:.0f} s")
    return runs / NAME


def test_the_pipeline_runs_across_hosts(cluster: Cluster, whole: Path) -> None:
    stages = json.loads((whole / "manifest.json").read_text())["stages"]
    assert {entry["status"] for entry in stages.values()} == {"done"} and "evaluate" in stages
    assert len(set(placed(whole, "policy"))) == 2, "the ranks of the policy are to be on two hosts"
    assert len(set(placed(whole, "rollout"))) == 2
    assert (whole / "evaluation.json").exists()


# What is there when the phase has just begun; iterations count from 1 in checkpoints, from 0 in transcripts.
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "rollout": lambda run: (run / "ppo" / "checkpoints" / "step-1").is_dir(),
    "update": lambda run: (run / "ppo" / "transcripts" / "iteration-00001.jsonl").exists(),
}
PHASES = {
    "rollout": ("generate", "policy log-probs", "reference log-probs", "values", "scores"),
    "update": ("policy update", "value update"),
}


@pytest.mark.parametrize(
    ("when", "how", "comes_back"),
    [("rollout", "kill", True), ("update", "link", False), ("rollout", "link", True), ("update", "kill", False)],
)
def test_a_host_that_is_cut_off_is_named_and_the_run_ends_in_the_same_bytes(
    cluster: Cluster, whole: Path, tmp_path: Path, when: str, how: str, comes_back: bool
) -> None:
    cluster.join(*cluster.hosts.names)
    run = up_to(whole, tmp_path, "ppo")
    command = start(cluster, ["stage", "ppo"], tmp_path)
    wait_for(lambda: MOMENTS[when](run) or command.process.poll() is not None, RUN_SECONDS, f"the {when} phase")
    assert command.process.poll() is None, command.shown()
    role = "rollout" if when == "rollout" else "policy"
    address = next(node for node in placed(run, role) if node != cluster.hosts.address("h0"))
    victim = cluster.hosts.named(address)
    lost = {worker["role"] for worker in json.loads((run / "ppo" / "placement.json").read_text())["workers"]
            if worker["node"] == address}  # fmt: skip
    cluster.lose(victim, how)
    cut = time.monotonic()
    named, line = command.error(120)
    assert command.ends(60) == 75, command.shown()
    print(
        f"\nmeasured: {how} in mid-{when}: named after {named - cut:.1f} s, ended after {time.monotonic() - cut:.1f} s"
    )
    print(line)
    found = re.search(r"phase (.+?): (\w+)\[\d\] on ([\d.]+), weight version (\d)|phase (.+?): (\w+)\[\d\] on ", line)
    assert found is not None, line
    assert (found[1] or found[5]) in PHASES[when] and (found[2] or found[6]) in lost
    assert f" on {address}" in line and "go on with the same command" in line
    assert named - cut <= NAMED_SECONDS
    # The same command goes on: with the host back, or on those that are left.
    cluster.mend(victim)
    if comes_back:
        cluster.join(victim)
    again = start(cluster, ["stage", "ppo"], tmp_path)
    assert again.ends(RUN_SECONDS) == 0, again.shown()
    weights = digests(whole / "ppo" / "model", "*.safetensors")
    assert weights and digests(run / "ppo" / "model", "*.safetensors") == weights


def test_generation_goes_on_on_the_hosts_that_are_left(cluster: Cluster, whole: Path, tmp_path: Path) -> None:
    cluster.join(*cluster.hosts.names)
    run = up_to(whole, tmp_path, "revise")
    command = start(cluster, ["stage", "revise"], tmp_path)
    wait_for(
        lambda: any((run / "revise").rglob("*.parquet")) or command.process.poll() is not None, RUN_SECONDS, "shards"
    )
    busy = [name for name in cluster.hosts.names[1:] if cluster.hosts.processes(name, "ray::WorkerHost")]
    assert busy, command.shown()
    cluster.lose(busy[0], "kill")
    assert command.ends(RUN_SECONDS) == 0, command.shown()
    warnings = [line for line in command.output if line.startswith("warning")]
    print("\nmeasured:", *warnings, sep="\n")
    assert any(cluster.hosts.address(busy[0]) in line and "a new worker" in line for line in warnings)
    tables = digests(whole / "revise", "*.parquet")
    assert tables and digests(run / "revise", "*.parquet") == tables
    cluster.mend(busy[0])


@pytest.mark.parametrize("how", ["link", "kill"])
def test_without_a_head_the_run_ends_and_can_be_gone_on_with(cluster: Cluster, tmp_path: Path, how: str) -> None:
    """The command runs on another host than the head, and that is cut off."""
    cluster.join(*cluster.hosts.names)
    command = start(cluster, ["run"], tmp_path, on="h1")
    shards = tmp_path / NAME / "revise"
    wait_for(lambda: any(shards.rglob("*.parquet")) or command.process.poll() is not None, RUN_SECONDS, "shards")
    cluster.lose("h0", how)
    cut = time.monotonic()
    named, line = command.error(120)
    assert command.ends(60) == 75, command.shown()
    print(f"\nmeasured: head lost ({how}): named after {named - cut:.1f} s, ended after {time.monotonic() - cut:.1f} s")
    print(line)
    assert re.search(rf"head on {cluster.hosts.address('h0')}:\d+: the head of the Ray cluster has not answered", line)
    for name in cluster.hosts.names:
        cluster.mend(name)
