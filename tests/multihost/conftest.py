"""Three pretend hosts for the module, with Ray over them, and the command line on the first."""

from __future__ import annotations

import fcntl
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multihost.hosts import HEALTH, Hosts, missing, wait_for

ROOT = Path(__file__).parents[2]
RUN = Path(__file__).with_name("hosts.yaml")
PORT = 6379
START_SECONDS = 120.0


class Command:
    """`cai-dist …` on one host, with its lines on standard error and when each came."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT
        )
        self.output: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_errors, daemon=True),
            threading.Thread(target=self._read_output, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def ends(self, seconds: float) -> int:
        """Its exit code; fails if it has none within `seconds`."""
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"no end within {seconds:g} s: {self.shown()}") from None
        for reader in self._readers:
            reader.join(timeout=20)
        return code

    def error(self, seconds: float) -> tuple[float, str]:
        """When the line that says what went wrong came, and the line."""

        def found() -> list[tuple[float, str]]:
            return [entry for entry in self.lines if "cai-dist: error:" in entry[1]]

        wait_for(lambda: found() or self.process.poll() is not None, seconds, f"an error of {self.shown()}")
        wait_for(found, 20, f"an error before the end of {self.shown()}")
        return found()[0]

    def shown(self) -> str:
        return "\n".join([*self.output[-30:], *(line for _, line in self.lines)])

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append((time.monotonic(), line.rstrip()))

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        self.output.extend(line.rstrip() for line in self.process.stdout)


class Cluster:
    """Ray over the hosts: the head on h0, the others beside it."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self._joined: set[str] = set()
        self.env = {
            **os.environ,
            **HEALTH,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": f"{hosts.address('h0')}:{PORT}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }

    def join(self, *names: str) -> None:
        """These hosts are up and part of the cluster; those that are it already stay as they are."""
        starting = []
        for name in [name for name in names if name not in self._joined]:
            if not self.hosts.up(name):
                self.hosts.boot(name)
            role = ["--head", f"--port={PORT}", "--include-dashboard=false"]
            if name != "h0":
                role = [f"--address={self.env['RAY_ADDRESS']}"]
            size = ["--num-cpus=2", f"--object-store-memory={100 * 2**20}"]
            command = ["ray.scripts.scripts", "start", *role, f"--node-ip-address={self.hosts.address(name)}", *size]
            # With no head in sight a process of Ray's needs no address of it.
            env = {key: value for key, value in self.env.items() if key != "RAY_ADDRESS"}
            process = subprocess.Popen(
                self.hosts.enter(name, [sys.executable, "-m", *command]),
                env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            starting.append((name, process))
            if name == "h0":
                self._started(name, process)
                starting.clear()
        for name, process in starting:
            self._started(name, process)

    def lose(self, name: str, how: str) -> None:
        """`kill` the host, or cut its `link`."""
        self._joined.discard(name)
        if how == "kill":
            self.hosts.kill(name)
        else:
            self.hosts.unplug(name)

    def mend(self, name: str) -> None:
        """A host, lost or not, is switched off, its network whole."""
        self._joined.discard(name)
        if self.hosts.up(name):
            self.hosts.kill(name)
        self.hosts.plug(name)

    def cai_dist(self, *words: str, on: str = "h0") -> Command:
        """The command line on one of the hosts."""
        return Command(self.hosts.enter(on, [sys.executable, "-m", "cai_dist", *words]), self.env)

    def _started(self, name: str, process: subprocess.Popen[str]) -> None:
        output, _ = process.communicate(timeout=START_SECONDS)
        assert process.returncode == 0, f"Ray on {name}: {output}"
        self._joined.add(name)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three hosts with Ray over them. A short path: Ray's sockets lie below it."""
    if lacking := missing():
        pytest.skip(f"{lacking}; `make test-cluster` as root installs and runs all")
    with tempfile.TemporaryDirectory(prefix="caim-") as folder, open("/tmp/caim.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pytest.skip("another run of these tests has the pretend hosts of this machine")
        hosts = Hosts(Path(folder), 3)
        try:
            cluster = Cluster(hosts)
            cluster.join(*hosts.names)
            yield cluster
        finally:
            hosts.close()
