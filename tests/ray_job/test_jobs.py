"""Runs as jobs of a real Ray job server: what happens, what the job's status is, and what the command ends with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.test_pipeline import TINY, digests, lines_of
from tests.ray_job.conftest import ROOT, Head

pytestmark = pytest.mark.rayjob
LONG = ("sft.train.max_steps=60", "sft.train.epochs=6", "sft.train.checkpoint_every=10")


def status(head: Head, name: str) -> tuple[str, int]:
    done = head.cai_dist("job", "status", name)
    return done.stdout.strip().splitlines()[0], done.returncode


@pytest.mark.timeout(240)
def test_a_mistake_is_exit_code_2_and_one_line_in_the_log(head: Head, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: x\nno_such_key: 1\n")
    done = subprocess.run(
        [str(ROOT / "launch/ray_job.sh"), "--submission-id", "bad", str(tmp_path / "bad.yaml")],
        env=head.environment | {"VENV": str(Path(sys.executable).parents[1])},
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "no_such_key" in line]
    assert len(lines) == 1 and lines[0].startswith("cai-dist: error:") and "bad.yaml:2" in lines[0]
    assert status(head, "bad") == ("job bad: FAILED, exit code 2", 2)


@pytest.fixture(scope="module")
def revised(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny pipeline whose `revise` was a job."""
    runs = tmp_path_factory.mktemp("runs")
    done = head.cai_dist(
        "job", "submit", "--stage", "revise", "--submission-id", "first", str(TINY), f"runs_dir={runs}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert status(head, "first") == ("job first: SUCCEEDED, exit code 0", 0)
    return runs / "tiny"


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_job_that_nobody_waits_for_in_an_uploaded_folder(head: Head, revised: Path, tmp_path: Path) -> None:
    shutil.copy(revised / "config.yaml", tmp_path / "uploaded.yaml")
    words = ["--working-dir", str(tmp_path), "uploaded.yaml", f"runs_dir={revised.parent}"]
    sent = head.cai_dist("job", "submit", "--no-wait", "--stage", "revise", *words)
    name = sent.stdout.strip()
    assert sent.returncode == 0 and name.startswith("cai-"), sent.stderr
    followed = head.cai_dist("job", "logs", name, "--follow")
    assert followed.returncode == 0
    assert "revise: done before, skipped" in followed.stdout
    # What follows is printed once, whole, and is what the server has.
    assert head.cai_dist("job", "logs", name).stdout == followed.stdout
    assert status(head, name) == (f"job {name}: SUCCEEDED, exit code 0", 0)
    assert name in head.cai_dist("job", "list").stdout
    again = head.cai_dist("job", "submit", "--submission-id", name, str(TINY))
    assert again.returncode == 2 and "choose another" in again.stderr
    assert head.cai_dist("job", "status", "no-such-job").returncode == 2


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_stopped_job_saves_and_goes_on_to_the_same_result(head: Head, revised: Path) -> None:
    runs = revised.parent
    for name in ("whole", "stopped"):
        shutil.copytree(revised, runs / name)
    submit = ["job", "submit", "--stage", "sft", str(TINY), f"runs_dir={runs}", *LONG]
    assert head.cai_dist(*submit, "name=whole").returncode == 0

    following = subprocess.Popen(
        [sys.executable, "-m", "cai_dist", *submit, "name=stopped", "--submission-id", "stopped"],
        env=head.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while lines_of(runs / "stopped", "sft") < 3:
        assert following.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    stop = head.cai_dist("job", "stop", "stopped")
    log = head.cai_dist("job", "logs", "stopped").stdout
    assert (stop.returncode, stop.stdout) == (0, "job stopped: STOPPED, exit code 75\n"), stop.stderr + log
    out, _ = following.communicate(timeout=120)
    assert following.returncode == 75 and "the same command goes on" in out
    assert status(head, "stopped") == ("job stopped: STOPPED, exit code 75", 75)
    assert not (runs / "stopped" / "sft" / "model").exists()

    resumed = head.cai_dist(*submit, "name=stopped")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert digests(runs / "stopped") == digests(runs / "whole")


DEAF = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: None); print('up', flush=True); time.sleep(99)"
# In a process of its own: Ray reads the variables of authentication once.
SUBMIT = f"""
import sys
from cai_dist.cluster.ray_jobs import JobServer
JobServer(None, patience=60).submit([sys.executable, "-c", {DEAF!r}], name="deaf", grace=2)
"""


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_job_that_does_not_end_is_killed_when_its_time_is_over(head: Head) -> None:
    subprocess.run([sys.executable, "-c", SUBMIT], env=head.environment, cwd=ROOT, timeout=120, check=True)
    deadline = time.monotonic() + 120
    while "\nup" not in head.cai_dist("job", "logs", "deaf").stdout:
        assert time.monotonic() < deadline
    stop = head.cai_dist("job", "stop", "deaf")
    assert stop.returncode == 1 and "job deaf: STOPPED, exit code 75: ended by a signal" in stop.stdout
    assert status(head, "deaf")[1] == 75
    # What is over is not stopped again.
    assert head.cai_dist("job", "stop", "deaf").returncode == 1


@pytest.mark.full
@pytest.mark.timeout(300)
def test_rays_own_command_works_too(head: Head, revised: Path, tmp_path: Path) -> None:
    shutil.copy(revised / "config.yaml", tmp_path / "uploaded.yaml")
    words = ["cai-dist", "stage", "revise", "uploaded.yaml", f"runs_dir={revised.parent}", "cluster.address=auto"]
    ray = str(Path(sys.executable).with_name("ray"))
    done = subprocess.run(
        [ray, "job", "submit", "--working-dir", str(tmp_path), "--", *words],
        env=head.environment, cwd=os.fspath(tmp_path), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "revise: done before, skipped" in done.stdout + done.stderr


@pytest.mark.full
@pytest.mark.timeout(300)
def test_the_doctor_examines_the_cluster(head: Head, tmp_path: Path) -> None:
    address = head.environment["RAY_API_SERVER_ADDRESS"].removeprefix("http://")
    host, _, dashboard = address.partition(":")
    done = head.cai_dist("doctor", "--address", f"{host}:{int(dashboard) - 1}", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout and "shared folder" in done.stdout
    # The dashboard's own port listens, and is no cluster: that is said within a minute or so, not after many.
    wrong = head.cai_dist("doctor", "--address", address)
    assert wrong.returncode == 2 and "cannot be joined" in wrong.stdout
