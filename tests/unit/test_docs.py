"""The documentation says what is there: the page of settings, links, paths and keys."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import Field

from cai_dist.cli import main as cli
from cai_dist.config.base import Section
from cai_dist.config.loading.messages import all_keys
from cai_dist.config.run import RunConfig

ROOT = Path(__file__).parents[2]
RUN_FILES = sorted((ROOT / "launch" / "runs").glob("*.yaml"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED_PATH = re.compile(r"(?<![\w./-])(?:launch|slurm|cai_dist|ds_configs|docs|tests|benchmarks)/[\w./*-]*")
CODE = re.compile(r"`([^`\n]+)`")


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_configuration", ROOT / "docs" / "make_configuration.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_settings_is_up_to_date(maker: ModuleType) -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == maker.page(), "run: python docs/make_configuration.py"


def sections(model: type[Section] = RunConfig) -> Iterator[type[Section]]:
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from sections(field.annotation)


def test_every_setting_has_a_meaning_and_one_alone(maker: ModuleType) -> None:
    fields = {f"{model.__name__}.{name}": field for model in sections() for name, field in model.model_fields.items()}
    values = {
        name for name, f in fields.items() if not (isinstance(f.annotation, type) and issubclass(f.annotation, Section))
    }
    documented = {name for name, field in fields.items() if field.description}
    supplied = set(maker.MEANINGS)
    assert values - documented - supplied == set()
    assert supplied - set(fields) == set(), "these settings are gone"
    assert supplied & documented == set(), "these have a docstring now"


def test_every_key_stands_on_the_page(maker: ModuleType) -> None:
    page = maker.page()
    shared = [key for key in all_keys() if f"`{key}`" not in page]
    # What is left out stands once, in the table of a section that several others hold.
    assert all(f"| `{key.rpartition('.')[2]}` |" in page for key in shared)


def test_types_bounds_and_defaults_are_put_in_words(maker: ModuleType) -> None:
    class Example(Section):
        steps: int | None = Field(None, ge=1)
        """How | many."""
        share: float = Field(0.5, ge=0, lt=1)
        pair: tuple[str, str] = ("(A)", "B")

    rows = list(maker._rows(Example, "x.", [], False))
    assert rows[0] == ("`x.steps`", "`null`", "whole number ≥ 1 or null", r"How \| many.")
    assert rows[1] == ("`x.share`", "`0.5`", "number ≥ 0, < 1", "")
    assert rows[2] == ("`x.pair`", "`[(A), B]`", "list of 2: text", "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked.read_text(encoding="utf-8")), f"{page.name}: {target}"


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_paths_exist(page: Path) -> None:
    for found in NAMED_PATH.findall(page.read_text(encoding="utf-8")):
        path = found.rstrip(".").replace("zeroN", "zero*")
        assert list(ROOT.glob(path)) if "*" in path else (ROOT / path).exists(), f"{page.name}: {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_settings_exist(page: Path) -> None:
    known = set(all_keys())
    heads = {key.partition(".")[0] for key in known if "." in key}
    for code in CODE.findall(page.read_text(encoding="utf-8")):
        key = re.split(r"[=:]", code, maxsplit=1)[0]
        is_file = key.endswith((".json", ".jsonl", ".md", ".parquet", ".py", ".sh", ".yaml"))
        if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key) and key.partition(".")[0] in heads and not is_file:
            assert key in known, f"{page.name}: {code}"


SAID = re.compile(r"(?:^(?:    |# +)|`)(?:\$ )?(?:[\w./-]+/)?cai-dist ([^`\n]*)", re.MULTILINE)
NOT_TYPED = re.compile(r"[|]|: ")
"""`lint|show|diff` names three commands, `cai-dist job ID: exit code` a line that is printed."""


@pytest.mark.parametrize("page", [*PAGES, *RUN_FILES], ids=lambda page: page.name)
def test_commands_are_those_of_the_program(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names, options and the order of arguments; a command may be named without its arguments."""
    for said in SAID.findall(page.read_text(encoding="utf-8")):
        words = shlex.split(said.partition("  ")[0], comments=True)
        if NOT_TYPED.search(" ".join(words)):
            continue
        try:
            cli._parsed(words)
        except SystemExit as error:
            told = capsys.readouterr().err
            alone = not any(word.startswith("-") or "." in word for word in words)
            assert error.code == 0 or (alone and "are required" in told), f"{page.name}: cai-dist {said}: {told}"
