"""Pretend hosts on one machine: each has its own network, process, host name and shared-memory namespace.

Their networks meet on a bridge that lies in a namespace of its own, so nothing is added to the machine's network. The
disk is common, as on a cluster with a shared file system; /tmp/ray is each host's own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PREFIX = "caim"
NET = "10.99.0"
HEALTH = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
"""As the scripts of slurm/ and launch/ set them for the head."""
_BRIDGE = f"{PREFIX}br"
_INIT = """\
hostname {name}
mount -t tmpfs -o size=1g tmpfs /dev/shm
mkdir -p /tmp/ray {folder}/ray
mount --bind {folder}/ray /tmp/ray
mount --bind {hosts} /etc/hosts
echo ready > {folder}/ready
trap 'exit 0' TERM
while :; do sleep 3600 & wait $!; done
"""


def missing() -> str:
    """What this machine lacks for pretend hosts; empty where it has all."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [tool for tool in ("ip", "unshare", "nsenter", "mount", "hostname") if shutil.which(tool) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class Hosts:
    """`count` hosts h0, h1, …, down until `boot`; `close` leaves nothing behind. `folder` is theirs."""

    def __init__(self, folder: Path, count: int) -> None:
        self.names = [f"h{number}" for number in range(count)]
        self._folder = folder
        self._inits: dict[str, subprocess.Popen[bytes]] = {}
        remove_leftovers()
        table = ["127.0.0.1 localhost", *(f"{self.address(name)} {name}" for name in self.names)]
        (folder / "hosts").write_text("\n".join(table) + "\n")
        ip("netns", "add", _BRIDGE)
        ip("-n", _BRIDGE, "link", "set", "lo", "up")
        ip("-n", _BRIDGE, "link", "add", "br0", "type", "bridge")
        ip("-n", _BRIDGE, "link", "set", "br0", "up")
        for name in self.names:
            self._wire(name)

    def address(self, name: str) -> str:
        return f"{NET}.{10 + self.names.index(name)}"

    def named(self, address: str) -> str:
        return self.names[int(address.rpartition(".")[2]) - 10]

    def boot(self, name: str) -> None:
        """The host is up, with nothing running on it."""
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        script = _INIT.format(name=name, folder=folder, hosts=self._folder / "hosts")
        namespaces = ["--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc", "--kill-child"]
        command = ["ip", "netns", "exec", PREFIX + name, "unshare", *namespaces, "bash", "-c", script]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._inits[name] = subprocess.Popen(command, **quiet, start_new_session=True)
        wait_for(lambda: (folder / "ready").exists(), 20, f"{name} to boot")

    def enter(self, name: str, command: Sequence[str]) -> list[str]:
        """The command that runs `command` on a host."""
        return ["nsenter", "-t", str(self._first(name)), "-m", "-u", "-i", "-n", "-p", f"--wd={os.getcwd()}", *command]

    def kill(self, name: str) -> None:
        """All processes of the host end at once."""
        os.kill(self._first(name), signal.SIGKILL)
        self._inits.pop(name).wait(timeout=30)

    def unplug(self, name: str) -> None:
        """Its network is cut; its processes run on."""
        ip("-n", PREFIX + name, "link", "set", "eth0", "down")

    def plug(self, name: str) -> None:
        ip("-n", PREFIX + name, "link", "set", "eth0", "up")

    def up(self, name: str) -> bool:
        return name in self._inits

    def processes(self, name: str, title: str) -> list[int]:
        """Processes of the host whose command line begins with `title`."""
        found = []
        with contextlib.suppress(OSError):
            network = os.readlink(f"/proc/{self._first(name)}/ns/net")
            for entry in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    line = Path(f"/proc/{entry}/cmdline").read_bytes()
                    if line.startswith(title.encode()) and os.readlink(f"/proc/{entry}/ns/net") == network:
                        found.append(int(entry))
        return found

    def close(self) -> None:
        for name in list(self._inits):
            self.kill(name)
        remove_leftovers()

    def _first(self, name: str) -> int:
        """Process 1 of the host, as it is called outside."""
        unshare = self._inits[name].pid
        return int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()[0])

    def _wire(self, name: str) -> None:
        space, port = PREFIX + name, f"v{name}"
        ip("netns", "add", space)
        ip("link", "add", port, "netns", _BRIDGE, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("-n", _BRIDGE, "link", "set", port, "master", "br0", "up")
        ip("-n", space, "link", "set", "lo", "up")
        ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")


def remove_leftovers() -> None:
    """The namespaces of this prefix, and all that still runs in them."""
    for space in _spaces():
        with contextlib.suppress(subprocess.SubprocessError, ProcessLookupError):
            listed = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, timeout=30)
            for pid in listed.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
        ip("netns", "del", space)


def _spaces() -> Iterator[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, timeout=30, check=True)
    for line in listed.stdout.splitlines():
        if line.startswith(PREFIX):
            yield line.split()[0]


def wait_for(condition: object, seconds: float, what: str) -> None:
    """Until `condition()` holds; fails after `seconds`."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.005)
