"""The documentation says what is there: the page of settings, links, paths and keys."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from pydantic import Field

from cai_dist.cli import main as cli
from cai_dist.config.base import Section
from cai_dist.config.loading.messages import all_keys
from cai_dist.config.run import RunConfig

ROOT = Path(__file__).parents[2]
RUN_FILES = sorted((ROOT / "launch" / "runs").glob("*.yaml"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
TARGET = re.compile(r"^([a-z-]+):[^=\n]*?##", re.MULTILINE)
NAMED_PATH = re.compile(r"(?<![\w./-])(?:launch|slurm|cai_dist|ds_configs|docs|tests|benchmarks)/[\w./*-]*")
CODE = re.compile(r"`([^`\n]+)`")


def script(name: str) -> ModuleType:
    """A script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    return script("make_configuration")


def test_the_block_of_rooms_is_up_to_date_and_every_room_has_its_row() -> None:
    rooms = script("make_rooms")
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert page == rooms.with_block(page), "run: python docs/make_rooms.py"
    names = [name for level in rooms.layers() for name in level]
    assert len(names) > 15 and names[0] == "cli" and names[-1] == "errors"
    for name in names:
        path = f"{name}.py" if (ROOT / "cai_dist" / f"{name}.py").exists() else f"{name}/"
        assert page.count(f"| `{path}` |") == 1, f"architecture.md: the table has no row, or two, for {path}"
    with pytest.raises(ValueError, match="must stand there"):
        rooms.with_block("a page without marks")


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


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())  # type: ignore[index]
    assert phony == set(TARGET.findall(makefile)) >= {"help", "fmt", "types", "unit", "integration", "test", "lint"}
    command = ["make", "--no-print-directory", "help"]  # under `make test` it would name its directory
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in said.splitlines()} == phony
    assert said.startswith("help ") and "unit tests alone" in said


def test_the_workflow_and_the_hooks_call_what_the_makefile_calls() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["ci"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy"]
    assert all(hook["entry"].startswith(".venv/bin/") and hook["language"] == "system" for hook in hooks)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])


def test_what_is_called_by_its_import_path_is_there() -> None:
    files = [*PAGES, *(ROOT / "cai_dist").rglob("*.py")]
    named = {name for file in files for name in re.findall(r"`(cai_dist(?:\.\w+)+)`", file.read_text(encoding="utf-8"))}
    named -= {"cai_dist.made_from"}  # a key in Parquet files
    assert len(named) > 5
    for name in named:
        assert pkgutil.resolve_name(name) is not None
