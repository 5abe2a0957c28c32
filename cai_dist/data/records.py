"""Reading a file of records: JSON lines, gzipped JSON lines or Parquet, with the place of every record for messages."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai_dist.errors import DataError


@dataclass(frozen=True, slots=True)
class Record:
    """One record; `place` is the file with its line (or row) number, 1-based."""

    place: str
    data: dict[str, Any]

    def text(self, key: str) -> str:
        """The text under `key`. Raises DataError naming the place where it is missing or no text."""
        value = self.data.get(key)
        if not isinstance(value, str):
            raise DataError(f"{self.place}: {key!r} must be a text, found {_kind(value, key in self.data)}")
        return value


def read_records(path: Path) -> Iterator[Record]:
    """The records of `*.jsonl`, `*.json`, `*.jsonl.gz` (one JSON object a line; empty lines are passed over) or
    `*.parquet`.

    Raises DataError, naming the file and the line, for a missing file, another kind of file, broken compression, bytes
    that are not UTF-8, and a line that is not a JSON object.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    name = path.name.lower()
    if name.endswith(".parquet"):
        yield from _parquet(path)
    elif name.endswith((".jsonl", ".json", ".jsonl.gz", ".json.gz")):
        yield from _json_lines(path)
    else:
        raise DataError(f"{path}: unknown kind of file; give .jsonl, .jsonl.gz or .parquet")


def _json_lines(path: Path) -> Iterator[Record]:
    number = 0
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        lines = iter(file)
        while True:
            number += 1
            place = f"{path}:{number}"
            try:
                line = next(lines)
                data = json.loads(line) if line.strip() else None
            except StopIteration:
                return
            except (EOFError, OSError, zlib.error) as error:
                raise DataError(f"{place}: broken gzip file: {error}") from None
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place}: not a line of JSON in UTF-8: {error}") from None
            if data is None and not line.strip():
                continue
            if not isinstance(data, dict):
                raise DataError(f"{place}: expected a JSON object, found {_kind(data, True)}")
            yield Record(place, data)


def _parquet(path: Path) -> Iterator[Record]:
    # Imported here: it takes two seconds, and only Parquet files need it.
    from datasets import load_dataset

    try:
        # Streaming reads the file itself; without it a second copy would go into the user's cache.
        rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield Record(f"{path}:{number}", dict(row))
    except DataError:
        raise
    except Exception as error:  # datasets raises whatever its parts raise
        line = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: not a readable Parquet file: {type(error).__name__}: {line}") from error


def _kind(value: object, there: bool) -> str:
    names = {str: "a text", bool: "true/false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "null") if there else "nothing"
