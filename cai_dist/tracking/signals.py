"""Stopping on request: the first signal asks, a second Ctrl-C insists."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from cai_dist.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopFlag:
    """`flag()` is true once SIGINT, SIGTERM or SIGUSR1 came; a second SIGINT raises `Interrupted` in the main thread.

    Order of calls: `install()` (main thread; again after anything that replaces handlers, as `ray.init` does), poll
    `flag()`, `restore()`. As a context manager it installs and restores.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether a signal to stop has come."""
        return self._received is not None

    @property
    def signal_name(self) -> str:
        """Name of the first signal, such as SIGTERM; empty before one came."""
        return self._received.name if self._received is not None else ""

    def install(self) -> None:
        """Take over the three signals; a second call takes them back from whoever replaced the handlers meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows handlers in the main thread alone; elsewhere (a test, a notebook) there is no flag
        for number in SIGNALS:
            before = signal.signal(number, self._handle)
            self._before.setdefault(number, before)

    def restore(self) -> None:
        """Give the signals back to whom they belonged before the first `install`."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def __enter__(self) -> StopFlag:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = self._received is None
        if first:
            self._received = signal.Signals(number)
            _tell(f"cai-dist: {self.signal_name}: stopping at the next safe point (Ctrl-C once more: at once)\n")
        elif number == signal.SIGINT:
            raise Interrupted("stopped at once on a second SIGINT; work since the last checkpoint will be repeated")


def _tell(text: str) -> None:
    """Straight to the descriptor: a handler may run in the middle of a buffered print, where print would fail."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
