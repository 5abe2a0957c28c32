"""The rows of one file, streamed, each with its line or row number: JSON lines, one JSON array, CSV, TSV, Parquet; the
text kinds also packed by gzip or Zstandard."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from cai_dist.data.files import kind_of
from cai_dist.errors import DataError

NumberedRows = Iterator[tuple[int, Any]]
"""(line or row number, 1-based; what stands there: of a table a mapping, of JSON any value)."""
_CHUNK = 1 << 20
LONGEST_ELEMENT = 1 << 26
"""Characters of one element of a JSON array; what is longer is a broken file."""


def rows_of(path: Path) -> NumberedRows:
    """The rows of a file, in order. Raises DataError, naming file and line, where it cannot be read on."""
    kind = kind_of(path)
    if kind == "parquet":
        return _parquet(path)
    if kind in ("csv", "tsv"):
        return _table(path, "\t" if kind == "tsv" else ",")
    return _json(path)


def _opened(path: Path) -> IO[bytes]:
    name = path.name.lower()
    if name.endswith(".gz"):
        return cast(IO[bytes], gzip.open(path))
    if name.endswith(".zst"):
        import pyarrow as pa  # half a second, which `cai-dist check` has not for JSON lines

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _json(path: Path) -> NumberedRows:
    """The values of a file of JSON lines (empty lines are passed over), or the elements of one JSON array, whatever the
    file is called: hh-rlhf's red_team_attempts.jsonl is an array."""
    number = 0
    with _reading(lambda: path, lambda: number), _opened(path) as file:
        before = b""
        while line := file.readline(_CHUNK):
            number += 1
            if start := line.removeprefix(codecs.BOM_UTF8).strip():
                break
            before += line
        if line and start[:1] == b"[" and not _one_line(start):
            yield from _array(path, before + line, file)
            return
        if len(line) == _CHUNK and not line.endswith(b"\n"):
            line += file.readline()
        while line:
            if line.strip():
                yield number, _value(path, number, line)
            number += 1
            line = file.readline()


def _one_line(start: bytes) -> bool:
    """Whether a line that opens a JSON array is a line of its own: a list in a file of JSON lines. A line that holds
    objects is an array of records."""
    try:
        value = json.loads(start)
    except (ValueError, RecursionError):
        return False
    return not value or not all(isinstance(element, dict) for element in value)


def _value(path: Path, number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number}: not a line of JSON in UTF-8: {error}") from None


def _array(path: Path, start: bytes, file: IO[bytes]) -> NumberedRows:
    """The elements of a JSON array, one at a time; the number is the line on which an element begins."""
    decode = codecs.getincrementaldecoder("utf-8-sig")()
    scan = json.JSONDecoder().raw_decode
    line, place, ended = 1, 0, False
    text = decode.decode(start)

    def broken(what: object) -> DataError:
        return DataError(f"{path}:{line}: the file begins a JSON array, and here it is broken: {what}")

    def more() -> bool:
        """Read on, twice as far as what is open is long; whether there was more."""
        nonlocal text, place, ended
        rest = text[place:]
        try:
            chunk = b"" if ended else file.read(max(_CHUNK, len(rest)))
            text, place, ended = rest + decode.decode(chunk, not chunk), 0, not chunk
        except UnicodeDecodeError as error:
            raise broken(error) from None
        return not ended

    def next_sign() -> str:
        """The next character that is no white space ("" at the end)."""
        nonlocal place, line
        while True:
            while place < len(text) and text[place] in " \t\r\n":
                line += text[place] == "\n"
                place += 1
            if place < len(text):
                return text[place]
            if not more():
                return ""

    next_sign()
    place += 1  # the bracket
    if next_sign() == "]":
        place += 1
    else:
        while True:
            next_sign()
            while True:
                try:
                    value, end = scan(text, place)
                    if end < len(text) or ended:  # a number at the end of what was read may go on
                        break
                except (ValueError, RecursionError) as error:
                    if isinstance(error, RecursionError) or ended or len(text) - place > LONGEST_ELEMENT:
                        raise broken(error) from None
                more()
            yield line, value
            line += text.count("\n", place, end)
            place = end
            sign = next_sign()
            place += 1
            if sign == "]":
                break
            if sign != ",":
                raise broken("a comma or the closing bracket is missing")
    if next_sign():
        raise broken("something stands after the closing bracket")


def _table(path: Path, delimiter: str) -> NumberedRows:
    """The rows of a CSV or TSV file whose first row names the columns; every cell is a text."""
    csv.field_size_limit(sys.maxsize)
    line = 1
    with _reading(lambda: path, lambda: line), _opened(path) as raw:
        reader = csv.reader(io.TextIOWrapper(raw, encoding="utf-8-sig", newline=""), delimiter=delimiter, strict=True)
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) < len(header) or not any(name.strip() for name in header):
            raise DataError(f"{path}:1: the first row must name the columns, each with a name of its own")
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                raise DataError(
                    f"{path}:{line}: {len(cells)} cells under {len(header)} columns; quote cells with commas"
                )
            if cells:
                yield line, dict(zip(header, cells, strict=True))
            line = reader.line_num + 1


def _parquet(path: Path) -> NumberedRows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=512):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, ValueError) as error:
        line = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: not a readable Parquet file: {type(error).__name__}: {line}") from error


class _reading:  # noqa: N801 - used as a function is
    """Turns what goes wrong in packed bytes, text or CSV into one line with the place."""

    def __init__(self, path: Callable[[], Path], line: Callable[[], int]) -> None:
        self._path, self._line = path, line

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        place = f"{self._path()}:{max(1, self._line())}"
        if isinstance(error, (EOFError, OSError, zlib.error)):
            packed = "gzip " if self._path().name.lower().endswith(".gz") else ""
            raise DataError(f"{place}: broken {packed}file: {' '.join(str(error).split())[:300]}") from None
        if isinstance(error, (csv.Error, UnicodeDecodeError)):
            raise DataError(f"{place}: not a table in UTF-8: {error}") from None
