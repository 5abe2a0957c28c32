"""A real Ray head with its dashboard, on a loopback address and ports of its own, with a token."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.3.1"
_UP_SECONDS = 120.0


@dataclass(frozen=True)
class Head:
    """`environment`: what a client of this cluster needs; `address`: its dashboard."""

    address: str
    environment: dict[str, str]

    def cai_dist(self, *words: str, seconds: float = 400.0) -> subprocess.CompletedProcess[str]:
        """Run `cai-dist …` as a client."""
        return subprocess.run(
            [sys.executable, "-m", "cai_dist", *words],
            env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    folder = tempfile.mkdtemp(prefix="cairj", dir="/tmp")  # short: Ray's sockets have names of at most 107 bytes
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        # As an activated environment has it: `ray job submit -- cai-dist run` finds the command.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }  # fmt: skip
    process, address = _up(folder, environment)
    try:
        yield Head(address, environment | {"RAY_API_SERVER_ADDRESS": address})
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _up(folder: str, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], str]:
    """A head that answers, and the address of its dashboard. `ray start` gives its processes 30 seconds, which a busy
    machine may not have had: it is tried three times."""
    for tries_left in (2, 1, 0):
        port = _free_ports(6)
        log = Path(folder) / "start.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--node-ip-address={HOST}",
                 f"--port={port}", "--include-dashboard=true", f"--dashboard-host={HOST}",
                 f"--dashboard-port={port + 1}", f"--dashboard-agent-listen-port={port + 2}",
                 f"--dashboard-agent-grpc-port={port + 3}", f"--metrics-export-port={port + 4}",
                 f"--ray-client-server-port={port + 5}", "--num-cpus=8", f"--object-store-memory={200 * 2**20}",
                 f"--temp-dir={folder}", "--disable-usage-stats"],
                env=environment, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        address = f"http://{HOST}:{port + 1}"
        try:
            _wait_until_up(process, address)
            return process, address
        except BaseException as error:
            _end(process)
            if not tries_left or not isinstance(error, Ended):
                raise AssertionError(f"{error}; Ray said: {log.read_text()[-2000:]}") from error
    raise AssertionError


class Ended(AssertionError):
    """The head was gone before it answered."""


def _free_ports(count: int) -> int:
    """The first of `count` ports in a row from 23000 on that nobody has here."""
    for first in range(23000, 24000, 10):
        try:
            for port in range(first, first + count):
                with socket.socket() as server:
                    server.bind((HOST, port))
            return first
        except OSError:
            continue
    raise RuntimeError("no free ports from 23000 on")


def _wait_until_up(process: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + _UP_SECONDS
    while True:
        if process.poll() is not None:
            raise Ended("the Ray head ended while it was starting")
        assert time.monotonic() < deadline, "the Ray head's dashboard did not come up"
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
            return
        except urllib.error.HTTPError as error:
            assert error.code == 401, "with a token, a stranger is refused"
            return
        except OSError:
            time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """This head and what it started, and no other: `ray stop` would end every Ray process of the machine."""
    own = [process, *_descendants(process.pid)]
    for one in own:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(timeout=30)
    psutil.wait_procs(own[1:], timeout=30)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
