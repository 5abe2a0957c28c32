"""`timeline.json`: who did what when, in the JSON array format of Chrome's trace viewer (chrome://tracing, Perfetto).

One event a line, so that the file can be cut back and mended line by line; after each write it is valid JSON. Times are
microseconds since 1970 by the clock of each worker's node.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cai_dist.tracking.atomic import write_bytes
from cai_dist.types import Span

ROLES = ("coordinator", "rollout", "policy", "value", "reference", "reward", "reward_terms")
"""The number of a role is its process in the trace."""
MAX_BYTES = 32 * 2**20
_END = b"\n]\n"
_HEAD = [
    {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": role, "iteration": 0}}
    for pid, role in enumerate(ROLES)
]


class Timeline:
    """Appends to one file. Where it has grown beyond `max_bytes` the older half of its events is dropped.

    One process writes at a time. All methods raise OSError.
    """

    def __init__(self, path: Path, iterations: int, max_bytes: int = MAX_BYTES) -> None:
        """Go on with `path`, without the events after `iterations` finished iterations (work that is repeated) and
        without what a kill tore."""
        self._path, self._max_bytes = path, max_bytes
        self._write(event for event in _read(path) if event["args"]["iteration"] <= iterations)

    def add(self, iteration: int, spans: Sequence[Span]) -> None:
        """Append the spans of an iteration (the number finished)."""
        lines = b"".join(b",\n" + _line(_event(span, iteration)) for span in spans)
        # One write that begins over the closing bracket: its cost is that of the new events.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            data, place = lines + _END, os.fstat(descriptor).st_size - len(_END)
            while data:
                written = os.pwrite(descriptor, data, place)
                data, place = data[written:], place + written
        finally:
            os.close(descriptor)
        if self._path.stat().st_size > self._max_bytes:
            events = _read(self._path)
            self._write(events[len(events) // 2 :])

    def _write(self, events: Iterable[dict[str, Any]]) -> None:
        write_bytes(self._path, b"[\n" + b",\n".join(map(_line, [*_HEAD, *events])) + _END)


def _event(span: Span, iteration: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": span.name,
        "pid": ROLES.index(span.role),
        "tid": span.rank,
        "ts": round(span.start * 1e6),
        "dur": round((span.end - span.start) * 1e6),
        "args": {"iteration": iteration},
    }


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole events of a file, without those that name the roles; none where it is not there."""
    if not path.exists():
        return []
    events = []
    for line in path.read_bytes().splitlines():
        try:
            event = json.loads(line.rstrip(b","))
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("ph") == "X" and isinstance(event.get("args"), dict):
            events.append(event)
    return events
