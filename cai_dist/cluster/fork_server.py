"""Forks in the place of new worker processes: to import torch, transformers and DeepSpeed costs a process some ten
seconds of a slow CPU, to be a copy of one that has imported them nothing.

A run on one machine without GPUs starts one server and tells Ray to start its workers through `forked_worker.py`. The
server imports what workers need, then forks a process for each request; it ends with the run, and its forks with it.
It has one thread whenever it forks.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai_dist.cluster import forked_worker
from cai_dist.cluster.forked_worker import FORKED, LENGTH_BYTES

_PR_SET_PDEATHSIG = 1
_REQUEST_SECONDS = 10.0
_END_SECONDS = 10.0


def can_fork() -> bool:
    """Whether this machine is one for forks: Linux, and no NVIDIA GPU, whose driver a fork cannot use."""
    if sys.platform != "linux" or any(Path("/dev").glob("nvidia[0-9]*")):
        return False
    try:  # an old kernel, or a container, may not have it
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


class ForkServer:
    """The server, from the driver's side: a context manager. The environment of this process is the workers'."""

    def __enter__(self) -> ForkServer:
        self._folder = tempfile.mkdtemp(prefix="cai-", dir="/tmp")  # mode 0700; a socket's path is short
        self._path = f"{self._folder}/s"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._path)
            listener.listen(128)
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(listener.fileno()), self._folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C is the driver's to handle
            )
        return self

    @property
    def executable(self) -> str:
        """The command, for a shell, by which Ray starts workers (`py_executable` of a runtime environment)."""
        return shlex.join([sys.executable, "-I", forked_worker.__file__, self._path])

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


@dataclass(frozen=True)
class _Request:
    """A process that is asked for; `files`: its stdin, stdout and stderr."""

    command: list[str]
    environment: dict[str, str]
    folder: str
    files: list[int]

    def close(self) -> None:
        """Hold the files no longer."""
        for file in self.files:
            os.close(file)


@dataclass(eq=False)
class _Fork:
    """A process that runs. `end`: its pidfd; `connection`: to the process that stands for it."""

    pid: int
    end: int
    connection: socket.socket
    over: bool = False

    def finish(self, selector: selectors.BaseSelector) -> None:
        """Take its exit code and tell it."""
        self.over = True
        _, status = os.waitpid(self.pid, 0)
        with contextlib.suppress(OSError):
            self.connection.sendall(str(os.waitstatus_to_exitcode(status) & 0xFF).encode())
        selector.unregister(self.end)
        selector.unregister(self.connection)
        os.close(self.end)
        self.connection.close()


def serve(listener: socket.socket, driver: int) -> _Request | None:
    """Fork until the pipe `driver` is closed: None. In a fork: what it is to be, at once."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(driver, selectors.EVENT_READ)
    forks: set[_Fork] = set()
    server = os.getpid()
    while True:
        for key, _ in selector.select():
            fork = key.data
            if key.fileobj == driver:
                return None
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request = _received(connection)
                pid = _forked() if request is not None else None
                if request is None or pid is None:
                    if request is not None:
                        request.close()
                    connection.close()  # who asked for it becomes the worker itself
                    continue
                if pid == 0:
                    connections = [connection, *(other.connection for other in forks)]
                    _leave(server, [selector, listener, *connections], [driver, *(other.end for other in forks)])
                    return request
                request.close()
                fork = _Fork(pid, os.pidfd_open(pid), connection)
                forks.add(fork)
                with contextlib.suppress(OSError):
                    connection.sendall(FORKED)
                selector.register(connection, selectors.EVENT_READ, fork)
                selector.register(fork.end, selectors.EVENT_READ, fork)
            elif not fork.over:
                if key.fileobj is fork.connection:  # Ray has ended the process that stands for it
                    os.kill(fork.pid, signal.SIGKILL)
                fork.finish(selector)
                forks.remove(fork)


def _forked() -> int | None:
    """The id of the new process, 0 in it; None where the system has no room for one."""
    try:
        return os.fork()
    except OSError:
        return None


def _received(connection: socket.socket) -> _Request | None:
    """A whole request; None where it is none, or its sender is gone."""
    connection.settimeout(_REQUEST_SECONDS)
    files: list[int] = []
    try:
        length, files, _, _ = socket.recv_fds(connection, LENGTH_BYTES, 3)
        left, found = int.from_bytes(length, "big"), b""
        while len(found) < left and (part := connection.recv(left - len(found))):
            found += part
        asked = json.loads(found)
        request = _Request(asked["command"], asked["environment"], asked["folder"], files)
        if len(files) != 3:
            raise ValueError("not the three files of a process")
    except (OSError, ValueError, KeyError, TypeError):
        for file in files:
            os.close(file)
        return None
    connection.settimeout(None)
    return request


def _leave(server: int, own: list[Any], files: list[int]) -> None:
    """In a fork: end with the server, and hold nothing that is its own."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(1)
    os.setpgid(0, 0)  # Ray ends workers with their process group
    for held in own:
        held.close()
    for file in files:
        os.close(file)


def _become(request: _Request) -> None:
    """Run the script that was asked for, as its own process would."""
    for number, file in enumerate(request.files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    sys.argv = request.command
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(request.command[0])
    runpy.run_path(request.command[0], run_name="__main__")


def _import_all() -> None:
    """What the workers of any stage import, and nothing that reads the environment of one worker (Ray does)."""
    from cai_dist.workers.registry import WORKERS

    os.environ["DS_ACCELERATOR"] = "cpu"
    gc.disable()
    for load in WORKERS.values():
        load()
    import deepspeed  # noqa: F401

    gc.freeze()
    gc.enable()


def main(listener: int, folder: str) -> None:
    """The server's process, or one of its forks. `folder`: where its socket is, which goes with it."""
    driver = os.dup(0)  # what forks have as their own stdin stands in the place of the driver's pipe
    _import_all()
    request = serve(socket.socket(fileno=listener), driver)
    if request is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _become(request)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
