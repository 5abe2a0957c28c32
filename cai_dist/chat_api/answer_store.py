"""Answers of a server, kept by the content of the question: one JSON line each, on disk before it is used."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any


class AnswerStore:
    """A file of answers by key. What a killed process left half-written is dropped when the file is opened. One process
    at a time (the lock of the run)."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")  # noqa: SIM115 (closed by `close`)
        self._lines: dict[str, tuple[int, int]] = {}
        """(first byte, number of bytes) of each answer's line."""
        self._end = 0
        self._read()

    def __contains__(self, key: str) -> bool:
        return key in self._lines

    def __len__(self) -> int:
        return len(self._lines)

    def get(self, key: str) -> Any:
        """The answer. Raises KeyError."""
        start, length = self._lines[key]
        return json.loads(os.pread(self._file.fileno(), length, start))["answer"]

    def put(self, key: str, answer: Any) -> None:
        """Keep an answer (a JSON value); it is on disk when this returns."""
        line = json.dumps({"key": key, "answer": answer}).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._lines[key] = self._end, len(line)
        self._end += len(line)

    def close(self) -> None:
        """May be called twice."""
        self._file.close()

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                if "answer" in entry:
                    self._lines[str(entry["key"])] = self._end, len(line)
            except (ValueError, KeyError, TypeError):
                pass  # a damaged line: its question is asked again
            self._end += len(line)
        self._file.truncate(self._end)
        self._file.seek(self._end)
