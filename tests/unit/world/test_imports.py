"""The oracle knows the answers; nothing that trains may import it, not even through another module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from cai_dist import errors

ROOT = Path(errors.__file__).parent
ORACLE = "cai_dist.world.oracle"
HELD_OUT_QUESTIONS = "cai_dist.world.choices"
ALLOWED = {"cai_dist.stages.evaluate", "cai_dist.stages.evaluation.judges"}
"""The modules of evaluation."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Every module that a file may import, `from package import module` counted as package.module too."""
    found: set[str] = set()
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def importers_of(target: str) -> set[str]:
    return {module_name(path) for path in ROOT.rglob("*.py") if target in imported(path)}


def reached_from(start: str) -> set[str]:
    """Every module of the package that importing `start` may bring in, directly or through others. The package's own
    face names modules for type checkers and imports none (tests/unit/api/test_import.py)."""
    paths = {module_name(path): path for path in ROOT.rglob("*.py")}
    seen: set[str] = set()
    queue = [start]
    while queue:
        name = queue.pop()
        if name in paths and name not in seen and name != "cai_dist":
            seen.add(name)
            queue += imported(paths[name])
    return seen


def test_only_evaluation_imports_the_oracle() -> None:
    assert importers_of(ORACLE) <= ALLOWED


@pytest.mark.parametrize("stage", ["prepare", "revise", "sft", "feedback", "preference", "ppo"])
def test_no_training_stage_reaches_the_oracle(stage: str) -> None:
    reached = reached_from(f"cai_dist.stages.{stage}")
    assert "cai_dist.types" in reached
    assert not {ORACLE, HELD_OUT_QUESTIONS} & reached


@pytest.mark.slow
def test_no_worker_reaches_the_oracle() -> None:
    for path in (ROOT / "workers").glob("*.py"):
        assert ORACLE not in reached_from(module_name(path))


def test_nobody_names_the_oracle_in_a_string() -> None:
    """Worker targets are strings ("package.module:Class"): the oracle must not come in that way either."""
    for path in ROOT.rglob("*.py"):
        if module_name(path) not in ALLOWED | {ORACLE}:
            assert "world.oracle:" not in path.read_text(encoding="utf-8"), path


def test_the_oracle_imports_nothing_that_trains() -> None:
    allowed = {"cai_dist.types", "cai_dist.world"}
    for name in imported(ROOT / "world" / "oracle.py"):
        top = ".".join(name.split(".")[:2])
        assert top in allowed or not name.startswith(("cai_dist", "torch", "transformers", "deepspeed", "ray"))


def test_the_search_finds_an_import() -> None:
    """The check itself can fail: a module that is imported is found."""
    assert "cai_dist.world.oracle" in importers_of("cai_dist.world.tables")
