"""Memory of the whole GPU while something runs: what all processes on it take together, contexts included."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cai_dist.types import Span

_QUERY = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0", "-lms", "200"]


class DeviceMemory:
    """Asks the driver five times a second; a context manager. Where there is no nvidia-smi there are no readings."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._process: subprocess.Popen[str] | None = None
        self.readings: list[tuple[float, float]] = []
        """(seconds since 1970, MiB)."""

    def __enter__(self) -> DeviceMemory:
        if self._wanted:
            try:
                self._process = subprocess.Popen(_QUERY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            except OSError:
                return self
            threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdigit():
                self.readings.append((time.time(), float(line)))

    def peaks(self, spans: Sequence[Span], phases: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """The largest reading while a worker was in a call of each phase; phases too short for one are left out."""
        found = {}
        for phase, names in phases.items():
            times = [(span.start, span.end) for span in spans if span.name in names]
            inside = [mib for at, mib in self.readings if any(start <= at <= end for start, end in times)]
            if inside:
                found[phase] = max(inside)
        return found
