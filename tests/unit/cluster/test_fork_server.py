"""Forks are the process that was asked for, and nobody is left behind whoever ends first."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cai_dist.cluster import fork_server
from cai_dist.cluster.fork_server import ForkServer, can_fork

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_fork(), reason="forks are for Linux without GPUs")]
SCRIPT = """
import json, os, sys
seen = {"argv": sys.argv, "cwd": os.getcwd(), "torch": "torch" in sys.modules, "ray": "ray" in sys.modules}
seen |= {"mine": os.environ.get("MINE"), "path": sys.path[0], "pid": os.getpid(), "name": __name__}
seen["files"] = sorted(map(int, os.listdir("/proc/self/fd")))[3:-1]
print(json.dumps(seen), flush=True)
print("on stderr", file=sys.stderr, flush=True)
what = sys.argv[1] if len(sys.argv) > 1 else ""
if what == "sleep":
    import time
    time.sleep(120)
if what == "exit":
    sys.exit(7)
if what == "fail":
    raise KeyError("told on stderr")
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as running:
        yield running


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def start(server: ForkServer, script: Path, *arguments: str) -> subprocess.Popen[str]:
    """As Ray does: by a shell that becomes the command."""
    command = f"exec {server.executable} {shlex.join([str(script), *arguments])}"
    return subprocess.Popen(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=script.parent,
        env=os.environ | {"MINE": "a b"},
    )  # fmt: skip


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_fork_is_the_process_that_was_asked_for(server: ForkServer, script: Path) -> None:
    other = start(server, script, "sleep")
    assert other.stdout and other.stdout.readline()
    process = start(server, script, "one", "two words")
    out, err = process.communicate(timeout=300)
    other.kill()
    other.wait(timeout=60)
    seen = json.loads(out)
    assert (process.returncode, err) == (0, "on stderr\n")
    assert seen["argv"] == [str(script), "one", "two words"] and seen["name"] == "__main__"
    assert (seen["cwd"], seen["path"], seen["mine"]) == (str(script.parent), str(script.parent), "a b")
    assert seen["torch"] and not seen["ray"], "Ray reads its environment when it is imported"
    assert seen["pid"] != process.pid
    assert seen["files"] == [], "nothing of the server's is open"


@pytest.mark.parametrize(("what", "code", "said"), [("exit", 7, ""), ("fail", 1, "KeyError: 'told on stderr'")])
def test_its_end_is_that_of_the_process_that_stands_for_it(
    server: ForkServer, script: Path, what: str, code: int, said: str
) -> None:
    process = start(server, script, what)
    _, err = process.communicate(timeout=300)
    assert process.returncode == code and said in err


@pytest.mark.parametrize("ended", ["stand-in", "fork", "server"])
def test_nobody_is_left_whoever_is_killed(script: Path, ended: str) -> None:
    with ForkServer() as server:
        process = start(server, script, "sleep")
        assert process.stdout
        fork = json.loads(process.stdout.readline())["pid"]
        pid = {"stand-in": process.pid, "fork": fork, "server": server._process.pid}[ended]
        os.kill(pid, signal.SIGKILL)
        assert process.wait(timeout=60) != 0
        assert gone(fork)


def test_a_fork_that_is_ended_with_its_process_group_is_alone_in_it(server: ForkServer, script: Path) -> None:
    process = start(server, script, "sleep")
    assert process.stdout
    fork = json.loads(process.stdout.readline())["pid"]
    os.killpg(os.getpgid(fork), signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    again = start(server, script, "exit")
    assert json.loads(again.communicate(timeout=300)[0])["torch"] and again.returncode == 7


def test_the_end_of_the_run_ends_its_forks(script: Path) -> None:
    with ForkServer() as server:
        process = start(server, script, "sleep")
        assert process.stdout
        fork = json.loads(process.stdout.readline())["pid"]
    assert process.wait(timeout=60) != 0 and gone(fork)
    assert not Path(server._folder).exists()


def test_a_driver_that_is_killed_takes_the_server_with_it(tmp_path: Path) -> None:
    code = (
        "import time\nfrom cai_dist.cluster.fork_server import ForkServer\n"
        "with ForkServer() as s:\n    print(s._process.pid, s._folder, flush=True)\n    time.sleep(120)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert driver.stdout
    pid, folder = driver.stdout.readline().split()
    driver.kill()
    driver.wait()
    assert gone(int(pid)) and not Path(folder).exists()


def test_without_a_server_the_process_is_the_worker_itself(script: Path) -> None:
    with ForkServer() as server:
        pass
    process = start(server, script, "exit")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 7
    assert json.loads(out)["pid"] == process.pid and not json.loads(out)["torch"]


def test_what_is_no_request_harms_nobody(server: ForkServer, script: Path) -> None:
    import socket

    for sent in (
        b"",
        b"x",
        (5).to_bytes(8, "big") + b"hello",
        (2).to_bytes(8, "big") + b"[]",
        (2).to_bytes(8, "big") + b"{}",
    ):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(server._path)
            stranger.sendall(sent)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(1) == b""
    process = start(server, script, "exit")
    process.communicate(timeout=300)
    assert process.returncode == 7


def test_gpus_and_other_systems_are_not_for_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    yes: Callable[[Path, str], list[str]] = lambda folder, pattern: ["/dev/nvidia0"]  # noqa: E731
    monkeypatch.setattr(fork_server.Path, "glob", yes)
    assert not can_fork()
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not can_fork()
