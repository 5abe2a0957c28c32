"""Exit codes of jobs, the shell line around a run, and a log that is shown once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cai_dist.cli import job
from cai_dist.cli import main as cli
from cai_dist.cluster import ray_jobs
from cai_dist.cluster.ray_jobs import Follower, Job, entrypoint, exit_code, recorded_code
from cai_dist.errors import JobError


@pytest.mark.parametrize(
    ("status", "server", "recorded", "code"),
    [
        ("PENDING", None, None, None),
        ("RUNNING", None, None, None),
        ("SUCCEEDED", 0, 0, 0),
        ("FAILED", 2, 2, 2),
        ("FAILED", 75, 75, 75),  # a node was lost: the same command goes on
        ("FAILED", None, None, 1),  # the job never started
        ("FAILED", -9, None, 137),
        ("STOPPED", None, 75, 75),
        ("STOPPED", None, 0, 0),  # it was done when it was asked to stop
        ("STOPPED", None, 2, 2),
        ("STOPPED", None, None, 75),  # killed
        ("STOPPED", None, 143, 75),  # the signal came before Python had started
    ],
)
def test_exit_codes(status: str, server: int | None, recorded: int | None, code: int | None) -> None:
    assert exit_code(status, server, recorded) == code


def test_only_the_last_line_of_this_job_counts() -> None:
    assert recorded_code("a.b", "x\ncai-dist job a.b: exit code 75\n") == 75
    for log in ("", "cai-dist job a.b: exit code 75\nmore", "cai-dist job aXb: exit code 75", "cai-dist job a.b: exit"):
        assert recorded_code("a.b", log) is None


def run_line(line: str) -> subprocess.Popen[str]:
    return subprocess.Popen(["/bin/sh", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_the_shell_writes_the_code_down_and_ends_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    words = [sys.executable, "-c", "import os, sys; print(os.getcwd(), sys.argv[1:]); sys.exit(8)", "it's; $x"]
    shell = run_line(entrypoint("n", str(folder), words))
    out, _ = shell.communicate(timeout=60)
    assert shell.returncode == 8
    assert out.splitlines() == [f"""{folder} ["it's; $x"]""", "cai-dist job n: exit code 8"]
    gone = run_line(entrypoint("n", str(tmp_path / "none"), words))
    out, _ = gone.communicate(timeout=60)
    assert gone.returncode == 1 and recorded_code("n", out) is None


def test_a_signal_to_all_lets_the_command_save_and_its_code_is_kept(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = (
        "import pathlib, signal, sys, time\n"
        "def stop(*_): time.sleep(0.3); print('saved'); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)\n"
    )
    shell = run_line(entrypoint("n", None, [sys.executable, "-c", child]))
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # As Ray does it: to the shell and to each of its children.
    children = subprocess.run(["pgrep", "-P", str(shell.pid)], capture_output=True, text=True, check=True).stdout
    shell.send_signal(signal.SIGTERM)
    subprocess.run(["kill", "-TERM", *children.split()], check=True)
    out, _ = shell.communicate(timeout=60)
    assert shell.returncode == 75
    assert out.splitlines() == ["saved", "cai-dist job n: exit code 75"]


LOG = "one\ntwo\nthree\nfour\n"


class Server:
    """Breaks off after `pieces` of the log, one try after the other, then is over."""

    def __init__(self, *pieces: int, error: Exception | None = None) -> None:
        self._pieces, self._error = list(pieces), error or ConnectionError("closed")

    async def tail(self, name: str, write: Callable[[str], None]) -> None:
        if not self._pieces:
            return
        length = self._pieces.pop(0)
        write(LOG[: length // 2])
        write(LOG[length // 2 : length])
        raise self._error

    def job(self, name: str) -> Job:
        return Job(name, "SUCCEEDED", 0, False, "", "", 0.0)

    def log(self, name: str) -> str:
        return LOG


def test_a_log_is_shown_once_however_often_the_connection_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs.time, "sleep", lambda _: None)
    shown: list[str] = []
    job = Follower(Server(5, 3, 14), "n", shown.append).run()  # type: ignore[arg-type]
    assert "".join(shown) == LOG and job.code == 0


def test_an_interruption_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs.time, "sleep", lambda _: None)
    shown: list[str] = []
    follower = Follower(Server(6, error=KeyboardInterrupt()), "n", shown.append)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        follower.run()
    follower.run()
    assert "".join(shown) == LOG


def test_a_server_that_is_gone_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr(ray_jobs.time, "sleep", lambda _: None)
    monkeypatch.setattr(ray_jobs.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(Server, "job", lambda self, name: (_ for _ in ()).throw(JobError("does not answer")))
    with pytest.raises(JobError, match="job n: lost: does not answer"):
        Follower(Server(), "n", lambda text: None).run()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--runtime-env-json", "{", "x.yaml"], "--runtime-env-json: not JSON"),
        (["--runtime-env-json", "[1]", "x.yaml"], "must be an object"),
        (["--working-dir", "/no/such", "x.yaml"], "--working-dir=/no/such: no such folder"),
        (
            ["--working-dir", "HERE", "x.yaml", "runs_dir=runs"],
            "must be an absolute path on a disk that all nodes share",
        ),
        (["--working-dir", "HERE", "x.yaml", "no_such=1"], "no_such"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text("name: x\n")
    assert cli.main(["job", "submit", *(str(tmp_path) if word == "HERE" else word for word in words)]) == 2
    assert complaint in capsys.readouterr().err


class Stoppable(Server):
    def __init__(self) -> None:
        super().__init__()
        self.stopped = 0

    def stop(self, name: str) -> bool:
        self.stopped += 1
        return True


@pytest.mark.parametrize(("presses", "code"), [(0, 0), (1, 0), (2, 75)])
def test_ctrl_c_stops_the_job_once_and_then_leaves_it(
    presses: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, left = Follower.run, [KeyboardInterrupt()] * presses

    def pressed(self: Follower) -> Job:
        if left:
            raise left.pop()
        return run(self)

    monkeypatch.setattr(Follower, "run", pressed)
    server = Stoppable()
    assert job._follow(server, "n") == code  # type: ignore[arg-type]
    assert server.stopped == min(presses, 1)
    assert ("cai-dist job logs n --follow" in capsys.readouterr().err) == (presses == 2)
