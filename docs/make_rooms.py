"""Writes the block of rooms in docs/architecture.md from the layers of pyproject.toml, which lint-imports enforces.

    python docs/make_rooms.py            write it
    python docs/make_rooms.py --check    exit 1 if it is not up to date

tests/unit/test_docs.py compares.
"""

from __future__ import annotations

import sys
import textwrap
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: written by docs/make_rooms.py -->\n", "<!-- end of rooms -->\n"
WIDTH = 110


def main() -> int:
    """Write the page, or with `--check` only compare; the exit code."""
    text = PAGE.read_text(encoding="utf-8")
    made = with_block(text)
    if "--check" in sys.argv[1:]:
        return int(text != made)
    PAGE.write_text(made, encoding="utf-8")
    return 0


def with_block(text: str) -> str:
    """The page `text` with the block between its two marks made anew. Raises ValueError without the marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name}: the lines {BEGIN!r} and {END!r} must stand there, in this order")
    return before + begin + block() + end + after


def block() -> str:
    """The layers from the top down, those of one level with a bar between them, as indented lines."""
    lines = textwrap.wrap(
        "  >  ".join(" | ".join(level) for level in layers()).replace(" | ", "~|~"), WIDTH, break_on_hyphens=False
    )
    return "\n" + "".join(f"    {line.replace('~|~', ' | ')}\n" for line in lines) + "\n"


def layers() -> list[list[str]]:
    """The rooms of each level, from the top down, as the contract "one way down" has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    [found] = [one["layers"] for one in contracts if one["name"] == "one way down"]
    return [[room.strip(" ()") for room in level.split("|")] for level in found]


if __name__ == "__main__":
    sys.exit(main())
