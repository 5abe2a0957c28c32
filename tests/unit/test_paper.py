"""docs/paper.md says what is so: its settings, files, defaults and departures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from cai_dist.config.base import Section
from cai_dist.config.loading.messages import all_keys
from cai_dist.config.loading.yaml_text import parse_value
from cai_dist.config.run import RunConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
CODE = re.compile(r"`([^`]+)`")
HEAD = ["what the paper does", "setting", "file", "default", "departure"]


def rows() -> list[list[str]]:
    """The cells of every row of every table."""
    lines = [line.strip("| ") for line in PAGE.splitlines() if line.startswith("| ")]
    found = [[cell.strip() for cell in re.split(r"\s\|\s", line)] for line in lines]
    return [cells for cells in found if cells != HEAD]


ROWS = rows()
DEFINED = re.findall(r"^- \*\*(D\d+)\*\* ", PAGE, re.MULTILINE)


def default_of(key: str) -> Any:
    """The default of a dotted key, also inside a section that is off (null) by default."""
    here: Any = RunConfig(name="x")
    for name in key.split("."):
        if isinstance(here, Section):
            value, annotation = getattr(here, name), type(here).model_fields[name].annotation
        else:
            field = here.model_fields[name]
            value, annotation = field.get_default(call_default_factory=True), field.annotation
        sections = [t for t in get_args(annotation) if isinstance(t, type) and issubclass(t, Section)]
        here = sections[0] if value is None and sections and key.rpartition(".")[2] != name else value
    return here


def plain(value: Any) -> Any:
    """A default as YAML has it: tuples are lists, a section is what of it is set."""
    if isinstance(value, Section):
        return value.model_dump(mode="json", exclude_none=True)
    return list(value) if isinstance(value, tuple) else value


def test_there_is_a_table_for_every_part_of_the_method() -> None:
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert headings == [
        "Roles and constitution",
        "Supervised stage",
        "Feedback",
        "Preference model",
        "Reinforcement learning",
        "Evaluation",
        "Departures",
    ]
    assert len(ROWS) > 50 and PAGE.count("|---|---|---|---|---|") == len(headings) - 1


@pytest.mark.parametrize("cells", ROWS, ids=lambda cells: cells[0][:50])
def test_settings_exist_with_the_default_that_is_told(cells: list[str]) -> None:
    assert len(cells) == len(HEAD)
    settings, defaults = CODE.findall(cells[1]), CODE.findall(cells[3])
    assert settings or cells[1] == cells[3] == "–"
    assert set(settings) <= set(all_keys())
    assert [parse_value(key, text) for key, text in zip(settings, defaults, strict=True)] == [
        plain(default_of(key)) for key in settings
    ]


@pytest.mark.parametrize("cells", ROWS, ids=lambda cells: cells[0][:50])
def test_every_row_names_a_file_that_exists(cells: list[str]) -> None:
    [file] = CODE.findall(cells[2])
    assert (ROOT / file).is_file()


def test_other_settings_in_the_text_exist() -> None:
    dotted = {code.partition(":")[0] for code in CODE.findall(PAGE) if re.fullmatch(r"[a-z_.]+(: \w+)?", code)}
    named = {code for code in dotted if "." in code and not code.endswith((".yaml", ".py", ".md"))}
    assert named and named <= set(all_keys())


def test_departures_are_numbered_defined_once_and_cited() -> None:
    assert [f"D{n}" for n in range(1, len(DEFINED) + 1)] == DEFINED
    cited = {number for cells in ROWS for number in re.findall(r"D\d+", cells[4])}
    assert cited == set(DEFINED)
    assert f"D1 to D{len(DEFINED)}" in PAGE
    departures = PAGE[PAGE.index("## Departures") :]
    assert departures.count("*Why:*") == len(DEFINED)


@pytest.mark.parametrize("page", ["stages.md", "constitution.md", "algorithms.md", "micro-world.md"])
def test_other_pages_cite_departures_that_exist(page: str) -> None:
    cited = set(re.findall(r"\bD\d+\b", (ROOT / "docs" / page).read_text(encoding="utf-8")))
    assert cited <= set(DEFINED)
