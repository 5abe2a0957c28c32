"""Parquet tables: written whole or not at all, and the same bytes for the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cai_dist.errors import DataError
from cai_dist.tracking.atomic import write_bytes

TableRow = Mapping[str, Any]
_KEY = b"cai_dist.made_from"
"""In the metadata of a shard: the hash of what it was made from."""


def write_rows(path: Path, rows: Sequence[TableRow], schema: pa.Schema) -> None:
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
    """A table made in pieces, each a durable file `00000.parquet` …; what is there need not be made again.

    `keys`: for each piece a hash of all that it is made from. It stands in the file, and a file with another key (or
    none, or one that cannot be read) is no piece of this table: `put_aside` takes such files out of the folder.
    """

    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        self.folder, self.keys = folder, tuple(keys)

    def path(self, i: int) -> Path:
        """The file of piece `i`."""
        return self.folder / f"{i:05d}.parquet"

    def missing(self) -> list[int]:
        """The pieces that have not been written, in order."""
        return [i for i, key in enumerate(self.keys) if _key_of(self.path(i)) != key]

    def put_aside(self) -> Path | None:
        """Move every table that is no piece of this one from the folder to a new `FOLDER.old-N` beside it, so that the
        folder never mixes; returns that, or None where all are pieces. Nothing is deleted."""
        mine = {self.path(i): key for i, key in enumerate(self.keys)}
        stale = [p for p in sorted(self.folder.glob("*.parquet")) if p not in mine or _key_of(p) != mine[p]]
        if not stale:
            return None
        number = 1
        while (aside := self.folder.with_name(f"{self.folder.name}.old-{number}")).exists():
            number += 1
        aside.mkdir()
        for path in stale:
            path.rename(aside / path.name)
        return aside

    def write(self, i: int, rows: Sequence[TableRow], schema: pa.Schema) -> None:
        """Write piece `i`, atomically. Raises IndexError where there is no such piece."""
        if not 0 <= i < len(self.keys):
            raise IndexError(f"shard {i} of {len(self.keys)}")
        write_rows(self.path(i), rows, schema.with_metadata({**(schema.metadata or {}), _KEY: self.keys[i]}))

    def rows(self) -> list[dict[str, Any]]:
        """The rows of all pieces, in order. Raises DataError where pieces are missing or unreadable."""
        if missing := self.missing():
            raise DataError(
                f"{self.folder}: {len(missing)} of {len(self.keys)} shards are missing, the first is {missing[0]}"
            )
        return [row for i in range(len(self.keys)) for row in read_rows(self.path(i))]


def _key_of(path: Path) -> str | None:
    """The key in a shard; None where there is none, or no such table."""
    try:
        found = (pq.read_schema(path).metadata or {}).get(_KEY)
    except (pa.ArrowException, OSError):
        return None
    return None if found is None else bytes(found).decode()


def _read(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            return file.read()
    except FileNotFoundError:
        raise DataError(f"{path}: no such table; has the stage before finished?") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {' '.join(str(error).split())}") from None
