"""Whole runs on a real Slurm of two nodes: a chain of jobs, one job for all, PPO preempted in the middle."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import ROOT, SlurmCluster, broken_ray, until

pytestmark = [pytest.mark.slurm, pytest.mark.full]
RUN = "tests/integration/tiny.yaml"
STAGE = 400.0
"""Seconds for the job of one stage: about 40 on a quiet machine."""


def settings(runs: Path, name: str) -> list[str]:
    return [RUN, f"runs_dir={runs}", f"name={name}", "ppo.iterations=10"]


def weights(run_dir: Path) -> dict[str, str]:
    """Hash of each weight file of the trained policy."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (run_dir / "ppo/model").glob("*.safetensors")
    }


def iterations(run_dir: Path) -> list[dict[str, Any]]:
    """The numbers of PPO's iterations, without those that are times or bytes of processes."""
    path = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        {
            name: value
            for name, value in line.items()
            if name != "time" and not name.endswith("seconds") and not name.startswith(("idle_", "memory_"))
        }
        for line in lines
        if line["stage"] == "ppo"
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def chained(slurm: SlurmCluster, runs: Path) -> dict[str, str]:
    """`pipeline.sh --chain` to its end: stage -> job."""
    result = subprocess.run(
        ["bash", "slurm/pipeline.sh", "--chain", *settings(runs, "whole"),
         "--", "--nodes=2", f"--output={slurm.base}/jobs/%j.out"],
        env=slurm.env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    jobs = dict(re.findall(r"^(\w+): job (\d+)", result.stdout, re.MULTILINE))
    for job in jobs.values():
        found = slurm.wait(job, STAGE)
        assert (found.state, found.exit_code) == ("COMPLETED", "0:0"), slurm.log(job)
    return jobs


@pytest.mark.timeout(3000)
def test_a_chain_of_jobs_runs_every_stage(slurm: SlurmCluster, chained: dict[str, str], runs: Path) -> None:
    assert list(chained) == ["revise", "sft", "feedback", "preference", "ppo", "evaluate"]
    stages = json.loads((runs / "whole/manifest.json").read_text())["stages"]
    assert {name: stages[name]["status"] for name in chained} == dict.fromkeys(chained, "done")
    assert all("Ray is up on 2 nodes" in slurm.log(job) for job in chained.values())


@pytest.mark.timeout(1800)
def test_preempted_in_the_middle_it_comes_back_to_the_same_result(
    slurm: SlurmCluster, chained: dict[str, str], runs: Path
) -> None:
    again = runs / "again"
    shutil.copytree(runs / "whole", again)
    shutil.rmtree(again / "ppo")
    metrics = (again / "metrics.jsonl").read_text().splitlines(keepends=True)
    (again / "metrics.jsonl").write_text("".join(line for line in metrics if json.loads(line)["stage"] != "ppo"))
    job = slurm.sbatch("--nodes=2", "slurm/ppo.sh", *settings(runs, "again"))
    until("two iterations of PPO are over", lambda: len(iterations(again)) >= 2, STAGE, pause=0.05)
    urgent = slurm.sbatch("--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1")
    found = slurm.wait(job, 2 * STAGE)
    assert (found.state, found.exit_code, found.restarts) == ("COMPLETED", "0:0", 1), slurm.log(job)
    assert slurm.job(urgent).state == "COMPLETED"
    log = slurm.log(job)
    assert "got USR1" in log and "the command ended with exit code 75" in log and "back into the queue" in log
    assert iterations(again) == iterations(runs / "whole") and len(iterations(again)) == 10
    assert weights(again) == weights(runs / "whole") and weights(again)
    assert slurm.ray_processes(job) == []


@pytest.mark.timeout(1800)
def test_the_whole_pipeline_in_one_job_has_the_same_result(
    slurm: SlurmCluster, chained: dict[str, str], runs: Path
) -> None:
    job = slurm.sbatch("--nodes=2", "slurm/pipeline.sh", *settings(runs, "one-job"))
    found = slurm.wait(job, 3 * STAGE)
    assert (found.state, found.exit_code, found.restarts) == ("COMPLETED", "0:0", 0), slurm.log(job)
    stages = json.loads((runs / "one-job/manifest.json").read_text())["stages"]
    assert {stages[name]["status"] for name in chained} == {"done"}
    assert weights(runs / "one-job") == weights(runs / "whole")
    assert slurm.ray_processes(job) == []


@pytest.mark.timeout(300)
def test_a_chain_ends_where_a_stage_fails(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Its later stages are cancelled. (Here Ray does not come up for the first one.)"""
    broken_ray(tmp_path / "venv", "node0")
    result = subprocess.run(
        ["bash", "slurm/pipeline.sh", "--chain", RUN, f"runs_dir={tmp_path}/runs",
         "--", "--nodelist=node0", f"--output={slurm.base}/jobs/%j.out"],
        env={**slurm.env, "VENV": str(tmp_path / "venv")}, cwd=ROOT,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    first, *later = re.findall(r"^\w+: job (\d+)", result.stdout, re.MULTILINE)
    found = slurm.wait(first, 120)
    assert (found.state, found.exit_code) == ("FAILED", "42:0"), slurm.log(first)
    assert len(later) == 5
    assert {slurm.wait(job, 60).state for job in later} == {"CANCELLED"}


def test_a_chain_of_a_run_with_a_mistake_submits_nothing(slurm: SlurmCluster) -> None:
    before = slurm.call("squeue", "--noheader", "--states=all", "--format=%i")
    result = subprocess.run(
        ["bash", "slurm/pipeline.sh", "--chain", RUN, "ppo.iterations=-1"],
        env=slurm.env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 2 and "ppo.iterations=-1: must be at least 1" in result.stderr
    assert slurm.call("squeue", "--noheader", "--states=all", "--format=%i") == before
