"""The tables of mutations, `tables/*.toml`: which known bug, where it is put in, and which tests must then fail."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("tables")


class TableError(ValueError):
    """The table, or the place that one of its mutations names, is not as it should be."""


@dataclass(frozen=True)
class Row:
    """A bug that systems like this one have had, and what holds here instead."""

    number: int
    bug: str
    property: str


@dataclass(frozen=True)
class Mutant:
    """One changed line. `tests` are pytest node ids, each of which must fail; `hangs` says that a deadlock counts as
    failing; `deadline` (seconds) ends the tests; `quick` ones are run by the test suite itself."""

    name: str
    rows: tuple[int, ...]
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    quick: bool = False
    hangs: bool = False
    deadline: float = 120.0

    def applied(self, text: str) -> str:
        """The mutated text of `file`. Raises TableError unless `old` stands in it exactly once."""
        found = text.count(self.old)
        if found != 1:
            raise TableError(f"{self.file}: the text to change must stand there once, not {found} times: {self.old!r}")
        if self.old == self.new:
            raise TableError(f"{self.file}: the mutation changes nothing: {self.old!r}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Table:
    rows: dict[int, Row]
    mutants: tuple[Mutant, ...]

    def of_row(self, number: int) -> list[Mutant]:
        """The mutations of a row, in the order of the table."""
        return [mutant for mutant in self.mutants if number in mutant.rows]


def load(path: Path = TABLE) -> Table:
    """One table from a file, or from all files of a folder. Raises TableError for unknown keys or rows, repeated
    names and mutants without tests."""
    files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
    contents = [tomllib.loads(file.read_text(encoding="utf-8")) for file in files]
    rows = [_made(Row, entry) for content in contents for entry in content.get("row", [])]
    mutants = tuple(_made(Mutant, entry) for content in contents for entry in content.get("mutant", []))
    _refuse_repeated("row", [str(row.number) for row in rows])
    _refuse_repeated("name", [mutant.name for mutant in mutants])
    known = {row.number for row in rows}
    for mutant in mutants:
        if not mutant.tests or not mutant.rows or not set(mutant.rows) <= known:
            raise TableError(f"{mutant.name}: needs tests, and rows that the table describes")
    return Table({row.number: row for row in rows}, mutants)


def _made(kind: Any, entry: dict[str, Any]) -> Any:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise TableError(f"{entry.get('name', entry)}: {error}") from error


def _refuse_repeated(what: str, values: list[str]) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise TableError(f"{what} {', '.join(repeated)}: more than once in the table")
