"""What is done on a machine: in this process, or in one that the cluster starts on each node."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cai_dist.doctor.facts import NodeFacts, collect


class Examiner:
    """Methods that a cluster calls on each node; none of them waits longer than it is told to."""

    def __init__(self) -> None:
        self._server: socket.socket | None = None

    def facts(self, node: str, folders: Sequence[tuple[str, str]]) -> NodeFacts:
        """What `collect` finds on this node."""
        return collect(node, folders)

    def clock(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def write(self, folder: str, name: str, content: str) -> str:
        """A file for the other nodes; "" or what went wrong."""
        try:
            with open(Path(folder) / name, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            return error.strerror or type(error).__name__
        return ""

    def read(self, folder: str, contents: Mapping[str, str], seconds: float) -> tuple[str, float]:
        """Wait until each file has its content; ("" or what is still missing, seconds waited)."""
        start = time.monotonic()
        while True:
            missing = [name for name, content in contents.items() if _content(Path(folder) / name) != content]
            waited = time.monotonic() - start
            if not missing or waited > seconds:
                there = "" if Path(folder).is_dir() else " (no such folder here)"
                problem = f"{len(missing)} of {len(contents)} files not seen in {waited:.0f} s{there}"
                return (problem if missing else ""), waited
            time.sleep(0.1)

    def remove(self, folder: str, names: Sequence[str]) -> None:
        """Take away what `write` left."""
        for name in names:
            (Path(folder) / name).unlink(missing_ok=True)

    def listen(self) -> int:
        """A port of this process that takes connections."""
        self._server = socket.create_server(("", 0))
        return int(self._server.getsockname()[1])

    def reach(self, host: str, port: int, seconds: float) -> str:
        """Connect once; "" or what went wrong."""
        try:
            socket.create_connection((host, port), timeout=seconds).close()
        except OSError as error:
            return f"{error.strerror or error or type(error).__name__}"
        return ""

    def open_store(self, host: str, seconds: float) -> int:
        """A rendezvous for `all_reduce`, kept as long as this process lives; its port."""
        from cai_dist.distributed.process_group import open_store

        return open_store(host, seconds)

    def all_reduce(
        self, backend: str, ranks: Sequence[int], world: int, host: str, port: int, seconds: float
    ) -> list[str]:
        """Start these ranks of an all-reduce here, one a GPU for NCCL; "" or what went wrong, for each."""
        environment = dict(os.environ)
        if host == "127.0.0.1" and os.path.exists("/sys/class/net/lo"):
            # The host's own name may not resolve.
            environment["GLOO_SOCKET_IFNAME"] = environment["NCCL_SOCKET_IFNAME"] = "lo"
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "cai_dist.distributed.collective_check", backend, str(rank), str(world), host,
                 str(port), str(device), str(seconds)],
                env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                errors="replace",
            )
            for device, rank in enumerate(ranks)
        ]  # fmt: skip
        # The group has its own deadline; what outlives it has hung in a library.
        deadline = time.monotonic() + 2 * seconds
        return [_outcome(process, deadline - time.monotonic()) for process in processes]


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _outcome(process: subprocess.Popen[str], seconds: float) -> str:
    try:
        out, err = process.communicate(timeout=max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "hangs"
    if process.returncode == 0:
        return ""
    lines = (out or err).strip().splitlines() or [f"ended with {process.returncode}"]
    return lines[-1][:300]
