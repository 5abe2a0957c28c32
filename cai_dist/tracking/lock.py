"""One process at a time in a run folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from cai_dist.errors import UserError
from cai_dist.tracking.run_folder import RunFolder

_LOOK_SECONDS = 0.2
"""For so long a lock is tried again: `is_held` holds it for a moment, too."""


def is_held(run_dir: Path) -> bool:
    """Whether a process works in the run folder, on this host or, where the file system has locks over hosts, on
    another. True where it cannot be told: the lock of somebody else's run may not be readable."""
    try:
        descriptor = os.open(RunFolder(run_dir).lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)  # and with it the lock
    return False


class RunLock:
    """Context: holds `run_dir/.lock` (flock: the kernel frees it when the process ends, however it ends).

    Raises UserError (exit code 2) on entry where another holder has it.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = RunFolder(run_dir).lock
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _take(descriptor)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").split("\n")[0]
            os.close(descriptor)
            raise UserError(
                f"{self._path.parent}: another process works in this run folder ({holder or 'unknown'}); wait for it, "
                "or choose another name=… or runs_dir=…"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file stays: removing it would let two processes lock two different files of the same name.
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def _take(descriptor: int) -> None:
    """Raises BlockingIOError where another process keeps the lock."""
    until = time.monotonic() + _LOOK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise
        time.sleep(0.01)
