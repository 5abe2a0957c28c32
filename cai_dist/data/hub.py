"""Data sets that the `datasets` library reads: of the hub by their name, and folders that `save_to_disk` wrote.

No code of a data set is run: the library has given that up, and nothing here asks for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cai_dist.config.data import DataSource
from cai_dist.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_BATCH = 512


def hub_name(source: DataSource) -> str:
    """How messages call a data set of the hub: `org/name:config[split]@revision`."""
    name = f":{source.name}" if source.name else ""
    at = f"@{source.revision}" if source.revision else ""
    return f"{source.hub}{name}[{source.split or 'train'}]{at}"


def hub_rows(source: DataSource) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, 1-based; row) of a data set of the hub. Raises DataError where it cannot be had or read."""
    yield from _rows(_loaded(source.hub or "", source.name, source.split or "train", source.revision), hub_name(source))


def saved_rows(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, 1-based; row) of a folder that `Dataset.save_to_disk` wrote. Raises DataError."""
    # Imported where it is needed: it takes seconds.
    from datasets import load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:  # datasets raises whatever its parts raise
        raise DataError(f"{folder}: not what save_to_disk writes: {_said(error)}") from error
    yield from _rows(found, str(folder))


def hub_sha256(source: DataSource) -> str:
    """Hex SHA-256 of the rows of a data set of the hub: of what is read, not of its name. Raises DataError."""
    return _content_hash(source.hub or "", source.name, source.split or "train", source.revision)


@lru_cache(maxsize=8)
def _content_hash(hub: str, name: str | None, split: str, revision: str | None) -> str:
    digest = hashlib.sha256()
    found = _loaded(hub, name, split, revision)
    digest.update(str(found.features.arrow_schema.remove_metadata()).encode())
    for table in found.with_format("arrow").iter(_BATCH):
        # Rebuilt, so that the bytes depend on the rows alone and not on how the library's files are cut.
        whole = pa.Table.from_pylist(table.to_pylist(), schema=table.schema.remove_metadata())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, whole.schema) as writer:
            writer.write_table(whole)
        digest.update(sink.getvalue())
    return digest.hexdigest()


@lru_cache(maxsize=8)
def _loaded(hub: str, name: str | None, split: str, revision: str | None) -> Dataset:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    try:
        found = load_dataset(hub, name, split=split, revision=revision)
    except Exception as error:
        shown = hub_name(DataSource(hub=hub, name=name, split=split, revision=revision))
        raise DataError(f"{shown}: the data set cannot be loaded: {_said(error)}") from error
    return found


def _rows(found: Dataset, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        for table in found.with_format("arrow").iter(_BATCH):
            for row in table.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{shown}:{number + 1}: not readable: {_said(error)}") from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
