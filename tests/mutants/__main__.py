"""`python -m tests.mutants`: put each known bug into a copy of the code and see the named tests fail."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.mutants.runner import run_all
from tests.mutants.table import TABLE, Mutant, TableError, load


def chosen(mutants: Sequence[Mutant], rows: Sequence[int], names: Sequence[str], quick: bool) -> list[Mutant]:
    """The mutants asked for; all of them where nothing is asked for."""
    return [
        mutant
        for mutant in mutants
        if (not rows or set(rows) & set(mutant.rows))
        and (not names or mutant.name in names)
        and (not quick or mutant.quick)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--row", type=int, action="append", default=[], help="only the mutants of this row; repeatable")
    parser.add_argument("--name", action="append", default=[], help="only this mutant; repeatable")
    parser.add_argument("--quick", action="store_true", help="only the handful that takes less than a minute")
    parser.add_argument("--table", type=Path, default=TABLE, help="another table: a TOML file or a folder of them")
    parser.add_argument("--jobs", type=int, default=1, help="so many mutants at a time (default 1)")
    parser.add_argument("--patience", type=float, default=1.0, help="multiplies every deadline: for a busy machine")
    asked = parser.parse_args(arguments)
    try:
        mutants = chosen(load(asked.table).mutants, asked.row, asked.name, asked.quick)
    except (OSError, TableError) as error:
        print(error, file=sys.stderr)
        return 2
    if not mutants:
        print("no mutant of the table fits", file=sys.stderr)
        return 2
    say = partial(print, flush=True)
    return 0 if run_all(mutants, say, jobs=max(1, asked.jobs), patience=asked.patience) else 1


if __name__ == "__main__":
    sys.exit(main())
