"""`metrics.jsonl`: one JSON object a line with `stage`, `step`, `time` (seconds since 1970) and named numbers."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

from cai_dist.config.run import TrackingConfig
from cai_dist.tracking.atomic import write_bytes
from cai_dist.tracking.run_folder import RunFolder
from cai_dist.tracking.wandb_sink import WandbSink, open_wandb

RESERVED = ("stage", "step", "time", "nonfinite")


class Tracker:
    """Writes every line to metrics.jsonl and, where the configuration says so, to wandb.

    Order of calls: `log` any number of times; `rewind` when a stage resumes from an earlier step; `close`.
    `warn` receives the one line that says why wandb is out of use; the run goes on without it.
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrackingConfig,
        run_config: Mapping[str, Any],
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self._path = RunFolder(run_dir).metrics
        run_dir.mkdir(parents=True, exist_ok=True)
        repair(self._path)
        self._descriptor = self._open()
        self._wandb: WandbSink | None = open_wandb(run_dir, config, run_config, warn)

    def log(self, stage: str, step: int, **numbers: SupportsFloat | SupportsIndex) -> None:
        """Append one line. NaN and infinities become null and are named in a list `nonfinite`, so that every line is
        valid JSON. Raises ValueError for a name that is reserved, TypeError for a value that is no number."""
        taken = [name for name in numbers if name in RESERVED]
        if taken:
            raise ValueError(f"{', '.join(taken)}: names of every line of metrics.jsonl, not of a number")
        plain = {name: _plain(name, value) for name, value in numbers.items()}
        odd = [name for name, value in plain.items() if not math.isfinite(value)]
        line: dict[str, Any] = {"stage": stage, "step": int(step), "time": round(time.time(), 3)}
        line.update((name, None if name in odd else value) for name, value in plain.items())
        if odd:
            line["nonfinite"] = odd
        # One write call for one line: a reader, or the next start after a kill, finds at most one torn line at the end.
        data = (json.dumps(line, allow_nan=False) + "\n").encode()
        while data:
            data = data[os.write(self._descriptor, data) :]
        if self._wandb is not None:
            self._wandb.log(stage, int(step), plain)

    def rewind(self, stage: str, step: int) -> None:
        """Drop the lines of `stage` with a step beyond `step`: they belong to work that is going to be repeated."""
        kept = [
            raw
            for raw in self._path.read_bytes().splitlines(keepends=True)
            if not ((line := parse_line(raw)) and line["stage"] == stage and line["step"] > step)
        ]
        os.close(self._descriptor)
        write_bytes(self._path, b"".join(kept))
        self._descriptor = self._open()

    def close(self) -> None:
        """Finish wandb and close the file. May be called twice."""
        if self._wandb is not None:
            self._wandb.close()
            self._wandb = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)


def repair(path: Path) -> None:
    """Make a last line that a kill tore whole again: completed if only its end of line is missing, else cut off."""
    if not path.exists():
        return
    data = path.read_bytes()
    if not data or data.endswith(b"\n"):
        return
    start = data.rfind(b"\n") + 1
    write_bytes(path, data + b"\n" if parse_line(data[start:]) else data[:start])


def parse_line(raw: bytes | str) -> dict[str, Any] | None:
    """A line of metrics.jsonl, or None where it is not one."""
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    if isinstance(line, dict) and isinstance(line.get("stage"), str) and isinstance(line.get("step"), int):
        return line
    return None


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics.jsonl, in order; empty where there are none."""
    path = RunFolder(run_dir).metrics
    if not path.exists():
        return []
    return [line for raw in path.read_bytes().splitlines() if (line := parse_line(raw))]


def _plain(name: str, value: Any) -> int | float:
    """A Python number from a Python, numpy or one-element tensor number."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name}={value!r}: a metric is a number")
    if isinstance(value, (bool, int)):
        return int(value)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: a metric is one number, not {type(value).__name__}") from None
