"""Parquet tables: written whole or not at all, and the same bytes for the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cai_dist.errors import DataError
from cai_dist.tracking.atomic import write_bytes

Row = Mapping[str, Any]


def write_rows(path: Path, rows: Sequence[Row], schema: pa.Schema) -> None:
    """Write flat rows to `path`, atomically; an earlier file is replaced.

    Every row must have exactly the columns of `schema` (ValueError otherwise: pyarrow alone would fill gaps with
    nulls and drop the rest in silence). The bytes depend on rows, schema and the version of pyarrow alone.
    """
    names = set(schema.names)
    for i, row in enumerate(rows):
        if set(row) != names:
            raise ValueError(f"{path}: row {i} has the columns {sorted(row)}, expected {sorted(names)}")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a table. Raises DataError where the file is missing or is no Parquet file."""
    return list(_read(path).to_pylist())


class Shards:
    """A table made in `total` pieces, each a durable file `00000.parquet` …; what is there need not be made again."""

    def __init__(self, folder: Path, total: int) -> None:
        self.folder, self.total = folder, total

    def path(self, i: int) -> Path:
        """The file of piece `i`."""
        return self.folder / f"{i:05d}.parquet"

    def missing(self) -> list[int]:
        """The pieces that have not been written, in order."""
        return [i for i in range(self.total) if not self.path(i).is_file()]

    def write(self, i: int, rows: Sequence[Row], schema: pa.Schema) -> None:
        """Write piece `i`, atomically. Raises IndexError unless 0 <= i < total."""
        if not 0 <= i < self.total:
            raise IndexError(f"shard {i} of {self.total}")
        write_rows(self.path(i), rows, schema)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of all pieces, in order. Raises DataError where pieces are missing or unreadable."""
        if missing := self.missing():
            raise DataError(
                f"{self.folder}: {len(missing)} of {self.total} shards are missing, the first is {missing[0]}"
            )
        return [row for i in range(self.total) for row in read_rows(self.path(i))]


def _read(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            return file.read()
    except FileNotFoundError:
        raise DataError(f"{path}: no such table; has the stage before finished?") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {' '.join(str(error).split())}") from None
