"""The walls of the house: each is tried with a fault planted in a copy of the package, which must go red."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import get_args

import pytest

import cai_dist
from cai_dist.workers.registry import WORKERS, WorkerKind, worker_class

PACKAGE = Path(cai_dist.__file__).parent
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package and of pyproject.toml."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(PACKAGE, folder / "cai_dist", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(PACKAGE.parent / "pyproject.toml", folder / "pyproject.toml")
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A Python command that sees the copy and not this repository."""
    environment = {"PYTHONPATH": str(folder), "PATH": ""}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)


def plant(folder: Path, name: str, text: str) -> Path:
    path = folder / "cai_dist" / name
    path.write_text(text)
    return path


def broken(folder: Path) -> set[str]:
    """Names of the contracts that are broken."""
    found = run(folder, "-c", LINT, "--no-cache")
    names = {line.removesuffix(" BROKEN").strip() for line in found.stdout.splitlines() if line.endswith(" BROKEN")}
    assert (found.returncode == 0) == (not names), found.stdout + found.stderr
    assert "Contracts: " in found.stdout, found.stdout + found.stderr
    return names


INSIDE = "inside stages: one way down, and no stage knows another"
ORACLE = "only the evaluation sees the oracle"
JUDGES = "only the last stage, what ends a run and what shows it see the evaluation"
PLANTED = {
    "a new file that runs models sees the oracle": (
        "stages/execution/fresh.py",
        "def f() -> None:\n    from cai_dist.world import oracle\n\n    print(oracle)\n",
        {ORACLE},
    ),
    "a new file of the world hands the choices on": (
        "world/fresh.py",
        "from cai_dist.world.choices import choice_questions as choice_questions\n",
        {ORACLE},
    ),
    "upwards inside stages": ("stages/tables/fresh.py", "from cai_dist.stages.comparisons import pairs\n", {INSIDE}),
    "a part that knows a stage": (
        "stages/comparisons/fresh.py",
        "from cai_dist.stages.revise import NAME\n",
        {INSIDE},
    ),
    "labels that ask the judges": (
        "stages/ai_feedback/fresh.py",
        "from cai_dist.stages.evaluation import judges\n",
        {INSIDE, JUDGES},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_import_breaks_a_contract(copy: Path, name: str) -> None:
    file, text, contracts = PLANTED[name]
    path = plant(copy, file, text)
    try:
        assert broken(copy) == contracts
    finally:
        path.unlink()


def test_without_a_fault_the_copy_keeps_every_contract(copy: Path) -> None:
    assert broken(copy) == set()


@pytest.mark.slow
def test_a_renamed_worker_class_is_seen(tmp_path: Path) -> None:
    """By mypy, in the registry alone: no string names the class any more."""
    workers = tmp_path / "cai_dist" / "workers"
    workers.mkdir(parents=True)
    for init in (tmp_path / "cai_dist" / "__init__.py", workers / "__init__.py"):
        init.touch()
    shutil.copyfile(PACKAGE / "workers" / "registry.py", workers / "registry.py")
    (workers / "base.py").write_text("class Worker: ...\n")
    kinds = defaultdict(list)
    for load in WORKERS.values():
        kinds[load().__module__.rpartition(".")[2]].append(load().__name__)
    for module, names in kinds.items():
        text = "from cai_dist.workers.base import Worker\n" + "".join(f"class {n}(Worker): ...\n" for n in names)
        (workers / f"{module}.py").write_text(text)
    command = ("-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "cai_dist/workers/registry.py")
    before = run(tmp_path, *command)
    assert before.returncode == 0, before.stdout + before.stderr
    path = workers / "reward.py"
    path.write_text(path.read_text().replace("RewardWorker", "ScoreWorker"))
    after = run(tmp_path, *command)
    assert after.returncode == 1 and "RewardWorker" in after.stdout, after.stdout + after.stderr


def test_every_kind_of_worker_is_in_the_registry() -> None:
    kinds = {kind for part in get_args(WorkerKind) for kind in (get_args(part) or (part,))}
    assert set(WORKERS) == kinds
    found = {kind: worker_class(kind) for kind in WORKERS}
    assert len(set(found.values())) == len(found) and found["policy"].__name__ == "PolicyWorker"
    assert worker_class("cai_dist.workers.value:ValueWorker") is found["value"]
    with pytest.raises(ValueError, match=r"^'polcy' is no worker: give one of policy, .* or package.module:Class$"):
        worker_class("polcy")


def test_who_starts_workers_imports_no_torch() -> None:
    code = (
        "import sys, cai_dist.workers.registry, cai_dist.config.run, cai_dist.tracking.run_folder\n"
        "print([name for name in ('torch', 'transformers', 'ray', 'deepspeed') if name in sys.modules])"
    )
    found = run(PACKAGE.parent, "-c", code)
    assert found.stdout.strip() == "[]", found.stdout + found.stderr


def repeated(folder: Path) -> dict[str, list[str]]:
    """Public classes of `folder` that have one name: name -> the files."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(path.relative_to(folder).as_posix())
    return {name: files for name, files in found.items() if len(files) > 1}


def test_a_public_class_name_means_one_thing() -> None:
    assert repeated(PACKAGE) == {}


def test_a_class_name_that_is_there_twice_is_seen(copy: Path) -> None:
    path = plant(copy, "world/fresh.py", "class RunContext: ...\n\n\nclass _Private: ...\n")
    try:
        assert repeated(copy / "cai_dist") == {"RunContext": ["stages/context.py", "world/fresh.py"]}
    finally:
        path.unlink()
