"""A public docstring says what the thing is, in words that stand alone: it is read in an editor's tooltip, without the
line above it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import cai_dist

PACKAGE = Path(cai_dist.__file__).parent
BACKWARDS = re.compile(
    r"(Of|As|And|Or|But|So|Also|Then|Such|Both|Same|Made|Because|Not|That|Those|These|They|It|Its|Their|He|Him|Whose"
    r"|Which|Who|See|By)\b|The (same|others?|former|latter)\b|What it\b|One of (them|these)\b|Where (it|they)\b"
)
"""First words that lean on something said before, or send the reader away."""
PREPOSITION = re.compile(r"(For|From|In|On|At|To|With|Without|Over|Under|Between|Per)\b")
"""First words after which a thing must still be named: behind a comma, a colon or "to"."""


def leans(text: str) -> bool:
    """Whether a docstring's first words do not stand alone."""
    first = re.split(r"(?<=[.!?])\s", " ".join(text.split()), maxsplit=1)[0]
    if PREPOSITION.match(first):
        return not re.search(r"[,:;]| to ", first)
    return BACKWARDS.match(first) is not None


def documented(path: Path) -> Iterator[tuple[str, str]]:
    """(name, docstring) of a file, its public classes and functions and their public methods."""

    def inside(node: ast.Module | ast.ClassDef, before: str) -> Iterator[tuple[str, str]]:
        for one in node.body:
            if isinstance(one, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not one.name.startswith("_"):
                yield before + one.name, ast.get_docstring(one) or ""
                if isinstance(one, ast.ClassDef):
                    yield from inside(one, f"{before}{one.name}.")

    module = ast.parse(path.read_text(encoding="utf-8"))
    yield "", ast.get_docstring(module) or ""
    yield from inside(module, "")


def leaning() -> set[str]:
    """Names of all whose docstring does not stand alone."""
    return {
        f"{path.relative_to(PACKAGE).as_posix()} {name}".strip()
        for path in sorted(PACKAGE.rglob("*.py"))
        for name, text in documented(path)
        if leans(text)
    }


def test_docstrings_stand_alone() -> None:
    assert not leaning(), "say first what it is"


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("Of the weights that made its oldest.", True),
        ("As `HasRows`.", True),
        ("The same on the host.", True),
        ("See the protocol. Raises DataError.", True),
        ("Those of `calls` that have ended.", True),
        ("For the stage PPO.", True),
        ("From the facts\nof a table. Then to others.", True),
        ("Its mean", True),
        ("Per sample, the raw score (logits).", False),
        ("From lists of items to equal schedules.", False),
        ("Offloads weights.", False),
        ("Assembled model, see `TrainEngine`.", False),
        ("Bytes of one rank.", False),
        ("", False),
    ],
)
def test_what_leans(text: str, bad: bool) -> None:
    assert leans(text) == bad
