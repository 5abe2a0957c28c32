"""The table of mutations fits the code and the tests, the page is made from it, and the runner can tell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from difflib import ndiff
from pathlib import Path

import pytest

from tests.mutants.__main__ import chosen, main
from tests.mutants.page import PAGE, page
from tests.mutants.runner import Outcome, PytestRun, check_baseline, copied_tree, judge, run_all, run_tests, try_mutant
from tests.mutants.table import ROOT, Mutant, TableError, load

REQUIRED = {*range(1, 14), *range(18, 29), 30}
TABLE = load()
RATE = Mutant(
    "warm-up",
    (1,),
    "cai_dist/engines/training/learning_rate.py",
    "return config.lr * (step + 1) / config.warmup_steps",
    "return config.lr * step / config.warmup_steps",
    ("tests/unit/engines/test_schedule.py::test_warm_up_then_constant",),
)
"""A mutation whose test needs neither torch nor a model."""


# the table


def test_every_row_has_a_mutant() -> None:
    assert set(TABLE.rows) >= REQUIRED
    assert [number for number in TABLE.rows if not TABLE.of_row(number)] == []


@pytest.mark.parametrize("mutant", TABLE.mutants, ids=lambda mutant: mutant.name)
def test_a_mutation_is_one_line_that_stands_once_and_still_is_python(mutant: Mutant) -> None:
    old, new = ([line.strip() for line in text.strip("\n").splitlines()] for text in (mutant.old, mutant.new))
    changes = [line for line in ndiff(old, new) if line[0] in "-+"]
    assert len(changes) <= 2, "other lines are context"
    changed = mutant.applied((ROOT / mutant.file).read_text(encoding="utf-8"))
    if mutant.file.endswith(".py"):
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse((ROOT / mutant.file).read_text(encoding="utf-8")))


@pytest.mark.parametrize("mutant", TABLE.mutants, ids=lambda mutant: mutant.name)
def test_the_named_tests_exist(mutant: Mutant) -> None:
    for node in mutant.tests:
        path, *names = node.partition("[")[0].split("::")
        scope: list[ast.stmt] = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        for name in names:
            found = [n for n in scope if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name]
            assert len(found) == 1, node
            scope = found[0].body
        assert names and names[-1].startswith("test_"), node


def test_the_page_is_made_from_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(TABLE), "run: python -m tests.mutants.page"


def test_the_quick_ones_are_a_handful_without_a_cluster() -> None:
    quick = chosen(TABLE.mutants, [], [], quick=True)
    assert 4 <= len(quick) <= 8
    assert all(test.startswith("tests/unit/") for mutant in quick for test in mutant.tests)


def test_a_table_with_a_mistake_is_refused(tmp_path: Path) -> None:
    row = '[[row]]\nnumber = 1\nbug = "b"\nproperty = "p"\n'
    mutant = '[[mutant]]\nname = "n"\nrows = [1]\nfile = "f"\nold = "a"\nnew = "b"\ntests = ["t"]\n'
    path = tmp_path / "table.toml"
    path.write_text(row + mutant)
    assert load(path).of_row(1)[0].name == "n"
    for text in (
        row + mutant + mutant,
        row + row + mutant,
        mutant,
        row + mutant.replace('["t"]', "[]"),
        row + mutant + "x = 1",
    ):
        path.write_text(text)
        with pytest.raises(TableError):
            load(path)


# the runner


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    with copied_tree() as folder:
        yield folder


@pytest.mark.slow
def test_a_bug_that_a_test_notices_is_killed(tree: Path) -> None:
    assert try_mutant(RATE, tree).outcome is Outcome.KILLED
    assert RATE.old in (tree / RATE.file).read_text(), "the copy is as it was"
    assert RATE.old in (ROOT / RATE.file).read_text()


@pytest.mark.slow
def test_a_changed_comment_survives(tree: Path) -> None:
    comment = replace(RATE, old='"""The learning rate as a pure function', new='"""The rate as a pure function')
    assert try_mutant(comment, tree).outcome is Outcome.SURVIVED


@pytest.mark.slow
def test_each_of_the_named_tests_must_fail(tree: Path) -> None:
    other = "tests/unit/engines/test_schedule.py::test_cosine_is_half_way_in_the_middle"
    verdict = try_mutant(replace(RATE, tests=(*RATE.tests, other)), tree)
    assert (verdict.outcome, verdict.reason) == (Outcome.SURVIVED, f"{other} passed")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"old": "no such text"},
            "cai_dist/engines/training/learning_rate.py: the text to change must stand there once, not 0",
        ),
        ({"old": "config"}, "must stand there once, not "),
        ({"new": RATE.old}, "changes nothing"),
        ({"file": "cai_dist/no_such_file.py"}, "no_such_file.py"),
        ({"new": "return undefined"}, "NameError"),
        ({"new": "return ("}, "pytest ended with"),
        ({"tests": ("tests/unit/engines/test_schedule.py::test_no_such_test",)}, "pytest ended with"),
    ],
)
@pytest.mark.slow
def test_a_mutation_that_proves_nothing_is_broken(tree: Path, change: dict[str, object], reason: str) -> None:
    verdict = try_mutant(replace(RATE, **change), tree)  # type: ignore[arg-type]
    assert verdict.outcome is Outcome.BROKEN
    assert reason in verdict.reason


@pytest.mark.slow
def test_a_run_past_its_deadline_is_broken_unless_a_deadlock_is_meant(tree: Path) -> None:
    endless = replace(RATE, new="while True: pass", deadline=3.0)
    verdict = try_mutant(endless, tree)
    assert verdict.outcome is Outcome.BROKEN and "did not end within 3 s" in verdict.reason
    assert judge(replace(endless, hangs=True), PytestRun(None), tree).outcome is Outcome.KILLED


@pytest.mark.slow
def test_another_package_than_the_copy_is_noticed(tree: Path) -> None:
    run = run_tests(tree, RATE.tests, 60.0)
    assert run.code == 0 and run.package is not None and Path(run.package).is_relative_to(tree)
    elsewhere = judge(RATE, run, tree / "elsewhere")
    assert elsewhere.outcome is Outcome.BROKEN and "not the copy" in elsewhere.reason


@pytest.mark.slow
def test_tests_that_fail_anyway_stop_everything(tree: Path) -> None:
    assert check_baseline(tree, RATE.tests) == []
    assert "pytest ended with" in check_baseline(tree, ["tests/unit/engines/test_schedule.py::test_gone"])[0]
    path = tree / RATE.file
    original = path.read_text()
    try:
        path.write_text(RATE.applied(original))
        assert "fails without any mutation" in check_baseline(tree, RATE.tests)[0]
    finally:
        path.write_text(original)


@pytest.mark.slow
def test_one_line_each_and_a_count(tree: Path) -> None:
    said: list[str] = []
    comment = replace(RATE, name="comment", old='"""The learning rate as', new='"""The rate as')
    assert not run_all([RATE, comment], said.append)
    assert [line.split()[0] for line in said[1:3]] == ["killed", "SURVIVED"]
    assert said[3] == "1 killed, 1 survived, 0 broken"
    assert not run_all([], said.append)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.slow
def test_the_quick_mutants_are_killed(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--quick"])
    assert code == 0, capsys.readouterr().out


def test_asking_for_nothing_that_exists_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--name", "no-such-mutant"]) == 2
    assert main(["--table", "/no/such/table.toml"]) == 2
    assert "no mutant" in capsys.readouterr().err
