"""A data set as a run names it, read record by record, whatever file, folder or hub it lies in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from cai_dist.config.data import DataSource
from cai_dist.data.columns import named
from cai_dist.data.files import data_files, kind_of, saved_table
from cai_dist.data.hub import hub_name, hub_rows, hub_sha256, saved_rows
from cai_dist.data.records import Record, kind
from cai_dist.data.rows import NumberedRows, rows_of
from cai_dist.errors import DataError, one_line
from cai_dist.registry import Signature, find_object, is_path, source_note
from cai_dist.types import DataRows

Source = str | DataSource
_ROWS = Signature(())


def shown(source: Source) -> str:
    """How messages call a data set."""
    if path := rows_path(source):
        return path
    if isinstance(source, str):
        return str(Path(source).expanduser())
    return hub_name(source) if source.hub is not None else str(Path(source.path or "").expanduser())


def source_files(source: Source) -> list[Path]:
    """The files (or `save_to_disk` folder) that a data set is read from, in order; none for one of the hub.

    Raises DataError where they are not there.
    """
    if rows_path(source):
        return []
    if isinstance(source, str):
        return data_files(source)
    return [] if source.path is None else data_files(source.path, source.split)


def hub_settings(sources: Mapping[str, Source]) -> dict[str, dict[str, str]]:
    """{"hub": {name: SHA-256 of the rows}} of those data sets that come from the hub, for a stage's fingerprint; empty
    where none does. (Files are inputs, and hashed as such; a name says nothing of what the hub holds today.)

    Raises DataError.
    """
    found = {name: hub_sha256(s) for name, s in sources.items() if isinstance(s, DataSource) and s.hub is not None}
    return {"hub": found} if found else {}


def rows_settings(sources: Mapping[str, Source]) -> dict[str, dict[str, dict[str, str]]]:
    """{"rows": {name: `registry.source_note`}} of those data sets that a callable of one's own gives, for a stage's
    fingerprint; empty where none does. Raises ConfigError."""
    own = {name: source_note(path, f"data.{name}.source") for name, s in sources.items() if (path := rows_path(s))}
    return {"rows": own} if own else {}


def rows_path(source: Source) -> str | None:
    """The `package.module:object` that a data set comes from; None for one of files or of the hub. (A file of that
    name goes first.)"""
    path = source if isinstance(source, str) else source.path
    return path if path is not None and is_path(path) and not Path(path).exists() else None


def check_rows(source: Source, key: str) -> None:
    """Import the callable that a data set comes from, if it does. Raises ConfigError where it is not there or wants
    arguments."""
    if path := rows_path(source):
        find_object(path, key, _ROWS)


def read_records(source: Source) -> Iterator[Record]:
    """The records of a data set, with `columns` and `ignore` of a `DataSource` applied.

    Raises DataError, naming the file and the line, for files that are missing, of another kind or broken, for lines
    that hold no JSON object, and for names under `columns` or `ignore` that are no column.
    """
    section = source if isinstance(source, DataSource) else None
    missing = set(section.ignore) if section else set()
    records = 0
    for place, value, typed in _values(source):
        if not isinstance(value, dict):
            raise DataError(f'{place}: expected a JSON object, found {kind(value)}; a prompt is {{"prompt": "…"}}')
        records += 1
        missing.difference_update(value)
        yield named(Record(place, value, typed), section)
    if missing and records:
        raise DataError(f"{shown(source)}: ignore: no record has a column {sorted(missing)[0]!r}; take it out")


def _values(source: Source) -> Iterator[tuple[str, object, bool]]:
    """(place, value, whether values have types)."""
    if isinstance(source, DataSource) and source.hub is not None:
        yield from _placed(hub_name(source), hub_rows(source), True)
        return
    if own := rows_path(source):
        yield from _placed(own, _own_rows(own), True)
        return
    for path in source_files(source):
        rows = saved_rows(path) if saved_table(path) else rows_of(path)
        yield from _placed(str(path), rows, kind_of(path) not in ("csv", "tsv"))


def _own_rows(path: str) -> NumberedRows:
    rows: DataRows = find_object(path, "data", _ROWS)
    number = 0
    try:
        for number, row in enumerate(rows(), 1):
            yield number, dict(row) if isinstance(row, Mapping) else row
    except Exception as error:
        raise DataError(f"{path}: fails after row {number}: {one_line(error)}") from error


def _placed(name: str, rows: NumberedRows, typed: bool) -> Iterator[tuple[str, object, bool]]:
    for number, value in rows:
        yield f"{name}:{number}", value, typed
