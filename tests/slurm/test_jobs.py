"""What becomes of a job on a real Slurm: exit codes, nodes, GPUs, scancel, requeue. A real Ray, a small command."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import CPUS, GPUS, SlurmCluster, broken_ray, until

pytestmark = pytest.mark.slurm
DRIVER = Path(__file__).with_name("driver.py")
UP = 240.0
"""Seconds for a job with a small command: about 17 on a quiet machine."""


def on_ray(slurm: SlurmCluster, *words: str, options: tuple[str, ...] = (), **env: str) -> str:
    """Submit `ray_cluster.sh WORDS` on both nodes with four CPUs of each."""
    command = "exec " + shlex.join(["bash", "slurm/ray_cluster.sh", *words])  # its shell must not take the signals
    shape = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=4", "--open-mode=append", "--requeue")
    return slurm.sbatch(*shape, *options, f"--wrap={command}", **env)


def driver(slurm: SlurmCluster, code: int, *words: str, options: tuple[str, ...] = (), **env: str) -> str:
    return on_ray(slurm, "python", str(DRIVER), str(code), *words, options=options, **env)


def printed(slurm: SlurmCluster, job: str) -> list[dict[str, Any]]:
    """What the driver has printed, at each start of the job."""
    return [json.loads(line) for line in slurm.log(job).splitlines() if line.startswith("{")]


def test_a_mistake_in_the_run_file_ends_the_job_before_ray_is_started(slurm: SlurmCluster) -> None:
    job = slurm.sbatch("slurm/ppo.sh", "launch/runs/demo.yaml", "ppo.iterations=-3", "name=a b")
    found = slurm.wait(job, 60)
    assert (found.state, found.exit_code) == ("FAILED", "2:0")
    lines = slurm.log(job).splitlines()
    assert any(line == "cai-dist: error: override: ppo.iterations=-3: must be at least 1" for line in lines)
    assert any("name='a b'" in line for line in lines), "an override with a space arrives as one word"
    assert len(lines) == 2
    assert not (slurm.base / "ray" / job).exists()


@pytest.mark.full
@pytest.mark.timeout(600)
def test_two_jobs_share_the_nodes_and_each_ends_with_its_own_exit_code(slurm: SlurmCluster) -> None:
    jobs = {
        code: driver(slurm, code, "0", "two words", "a=$HOME", options=options)
        for code, options in ((0, ("--mem=1000",)), (3, ("--mem=2000",)))
    }
    for code, job in jobs.items():
        found = slurm.wait(job, UP)
        state = "COMPLETED" if code == 0 else "FAILED"
        assert (found.state, found.exit_code) == (state, f"{code}:0"), slurm.log(job)
        (seen,) = printed(slurm, job)
        assert seen["cpus"] == {"node0": 4, "node1": 4}
        assert seen["store_mb"] == dict.fromkeys(slurm.names, pytest.approx((0.3, 0, 0, 0.6)[code] * 1000, abs=1))
        assert set(seen["tasks"]) == {"node0", "node1"}
        assert seen["arguments"] == ["0", "two words", "a=$HOME"]
        assert slurm.ray_processes(job) == []
        assert not list(Path("/tmp").glob(f"cai-{job}.*"))
        kept = sorted(path.name for path in (slurm.base / "ray" / job).iterdir())
        assert kept == [f"node0.{job}.0", "node0.log", f"node1.{job}.0", "node1.log"]


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("options", [("--gpus-per-node=2",), ("--gres=gpu:2",)])
def test_ray_gets_the_gpus_of_the_job(slurm: SlurmCluster, options: tuple[str, ...]) -> None:
    if not slurm.gpus:
        pytest.skip("pretended GPUs are devices, which only root can make")
    job = driver(slurm, 0, options=options)
    found = slurm.wait(job, UP)
    assert (found.state, found.exit_code) == ("COMPLETED", "0:0"), slurm.log(job)
    (seen,) = printed(slurm, job)
    assert seen["gpus"] == {"node0": 2, "node1": 2}
    assert all(len(visible.split(",")) == 2 for visible in seen["tasks"].values()), seen["tasks"]
    assert GPUS > 2 and CPUS > 4, "a part of the nodes, not all of them"


@pytest.mark.full
def test_gpus_are_asked_for_by_the_node(slurm: SlurmCluster) -> None:
    if not slurm.gpus:
        pytest.skip("pretended GPUs are devices, which only root can make")
    job = driver(slurm, 0, options=("--gpus=4", "--ntasks=2"))
    found = slurm.wait(job, 60)
    assert (found.state, found.exit_code) == ("FAILED", "2:0")
    assert slurm.log(job).endswith("--gpus=4: ask for GPUs by the node, with --gpus-per-node\n")


@pytest.mark.full
@pytest.mark.timeout(600)
def test_scancel_leaves_nothing_behind_and_the_job_does_not_come_back(slurm: SlurmCluster) -> None:
    job = driver(slurm, 0, "600")
    slurm.until_logged(job, '"tasks"', UP)
    assert len(slurm.ray_processes(job)) >= 6, "two raylets, a GCS and what belongs to them"
    slurm.call("scancel", job)
    assert slurm.wait(job, 60).state == "CANCELLED"
    until("no process of the job is left", lambda: not slurm.ray_processes(job), 30)
    assert not list(Path("/tmp").glob(f"cai-{job}.*"))
    until("the nodes are idle", lambda: slurm.idle() == len(slurm.names), 60)
    assert slurm.job(job).restarts == 0


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_node_that_does_not_come_up_is_named(slurm: SlurmCluster, tmp_path: Path) -> None:
    broken_ray(tmp_path, "node1")
    job = on_ray(slurm, "true", VENV=str(tmp_path))
    found = slurm.wait(job, UP)
    assert (found.state, found.exit_code) == ("FAILED", "42:0")
    (line,) = [line for line in slurm.log(job).splitlines() if line.startswith("ray_cluster.sh:")]
    assert "node1" in line and line.endswith("node1.log: no disk here")
    assert slurm.ray_processes(job) == []


@pytest.mark.full
@pytest.mark.timeout(900)
def test_an_interrupted_job_is_put_back_a_bounded_number_of_times(slurm: SlurmCluster) -> None:
    job = driver(slurm, 75, CAI_MAX_REQUEUES="1")
    found = slurm.wait(job, 2 * UP)
    assert (found.state, found.exit_code, found.restarts) == ("FAILED", "75:0", 1)
    assert [seen["restarts"] for seen in printed(slurm, job)] == ["0", "1"]
    assert "not put back into the queue: it was 1 times (CAI_MAX_REQUEUES)" in slurm.log(job)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_usr2_ends_the_job_for_good(slurm: SlurmCluster) -> None:
    job = driver(slurm, 0, "600")
    slurm.until_logged(job, '"tasks"', UP)
    slurm.call("scancel", "--batch", "--signal=USR2", job)
    found = slurm.wait(job, 60)
    assert (found.state, found.exit_code, found.restarts) == ("FAILED", "75:0", 0)
    assert slurm.ray_processes(job) == []


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_job_whose_ray_goes_away_is_started_again(slurm: SlurmCluster) -> None:
    job = driver(slurm, 0, "600", RAY_gcs_rpc_server_reconnect_timeout_s="10")
    slurm.until_logged(job, '"tasks"', UP)
    (gcs,) = [line for line in slurm.ray_processes(job) if "/gcs_server" in line]
    slurm.call("bash", "-c", f"kill -9 {gcs.split()[0]}")
    slurm.until_logged(job, "Ray has ended on a node", 60)
    found = slurm.wait(job, 2 * UP)
    assert (found.state, found.exit_code, found.restarts) == ("COMPLETED", "0:0", 1), slurm.log(job)
    assert slurm.ray_processes(job) == []
