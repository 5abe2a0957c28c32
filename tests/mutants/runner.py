"""Applies one mutation at a time to a copy of the tree and asks whether the tests that the table names notice it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.recorder import RECORD
from tests.mutants.table import ROOT, Mutant, TableError

COPIED = ("cai_dist", "tests", "pyproject.toml", "README.md", "benchmarks", "docs", "launch", "slurm")
BASELINE_DEADLINE = 900.0
TESTS_FAILED = 1
"""pytest's exit code for "tests ran, some failed"; 2 to 5 are its own troubles."""
CANNOT_RUN = ("NameError", "SyntaxError", "ImportError", "ModuleNotFoundError", "UnboundLocalError", "IndentationError")
BROKEN_CODE = (*CANNOT_RUN, "TypeError", "AttributeError", "FailedHealthCheck")
"""Errors of code that cannot run at all. A test that fails so has noticed nothing about the mathematics."""


class Outcome(StrEnum):
    KILLED = "killed"
    SURVIVED = "SURVIVED"
    BROKEN = "BROKEN"


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class PytestRun:
    """What one run of pytest came to; `code` None where the deadline ended it."""

    code: int | None
    output: str = ""
    package: str | None = None
    reports: Sequence[dict[str, str]] = field(default_factory=list)

    def of(self, node: str) -> list[dict[str, str]]:
        """The reports of a test, all its parameters included."""
        return [r for r in self.reports if r["test"] == node or r["test"].startswith((f"{node}[", f"{node}::"))]


@contextmanager
def copied_tree(root: Path = ROOT) -> Iterator[Path]:
    """A copy of what the tests need, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as made:
        folder = Path(made).resolve()
        for name in COPIED:
            source = root / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, folder / name)
        yield folder


def run_tests(folder: Path, nodes: Sequence[str], deadline: float) -> PytestRun:
    """pytest with this interpreter on the copy in `folder`, and on no other `cai_dist`."""
    with tempfile.TemporaryDirectory(prefix="mutants-record-") as made:
        record = Path(made) / "record.json"
        environment = os.environ | {
            "PYTHONPATH": str(folder),
            # A stale cache could hide a mutation that changes neither the size of a file nor its second.
            "PYTHONDONTWRITEBYTECODE": "1",
            RECORD: str(record),
        }
        options = ["-p", "tests.mutants.recorder", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--tb=short"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *nodes],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            return PytestRun(None, _ended(process))
        except BaseException:  # interrupted: leave nothing running
            _ended(process)
            raise
        written = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        return PytestRun(process.returncode, output, written.get("package"), written.get("reports", []))


def _ended(process: subprocess.Popen[str]) -> str:
    """Stop a run and all that it started: politely first, so that a cluster goes down with it."""
    for how, wait in ((signal.SIGINT, 15.0), (signal.SIGKILL, 15.0)):
        try:
            os.killpg(process.pid, how)
            return process.communicate(timeout=wait)[0]
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            break
    return ""


def check_baseline(folder: Path, nodes: Sequence[str], deadline: float = BASELINE_DEADLINE) -> list[str]:
    """One line for each reason not to trust the tests: unmutated, every one of them must run and pass."""
    run = run_tests(folder, nodes, deadline)
    if run.code not in (0, TESTS_FAILED):
        return [f"pytest ended with {run.code}", run.output[-3000:]]
    problems = _not_the_copy(run, folder)
    for node in nodes:
        reports = run.of(node)
        if any(report["outcome"] == "failed" for report in reports):
            problems.append(f"{node}: fails without any mutation")
        elif not any(report["when"] == "call" and report["outcome"] == "passed" for report in reports):
            problems.append(f"{node}: was not run")
    return [*problems, run.output[-3000:]] if problems else []


def judge(mutant: Mutant, run: PytestRun, folder: Path) -> Verdict:
    """Killed where each named test failed by what it says of the result, not by code that cannot run."""
    if run.code is None:
        if mutant.hangs:
            return Verdict(Outcome.KILLED, "deadlock")
        return Verdict(Outcome.BROKEN, f"the tests did not end within {mutant.deadline:g} s")
    if run.code not in (0, TESTS_FAILED):
        return Verdict(Outcome.BROKEN, f"pytest ended with {run.code}: {_last_line(run.output)}")
    if problems := _not_the_copy(run, folder):
        return Verdict(Outcome.BROKEN, problems[0])
    for node in mutant.tests:
        failed = [report for report in run.of(node) if report["outcome"] == "failed"]
        if not failed:
            return Verdict(Outcome.SURVIVED, f"{node} passed")
        if reason := _broken(failed[0]):
            return Verdict(Outcome.BROKEN, f"{node}: {reason}")
    return Verdict(Outcome.KILLED)


def _broken(report: dict[str, str]) -> str:
    """Why a failure proves nothing; empty where it does."""
    line = _last_line(report["message"])
    if report["when"] != "call":
        return f"failed in {report['when']}: {report['error']}: {line}"
    if report["error"] in BROKEN_CODE:
        return f"{report['error']}: {line}"
    # An error inside a worker process arrives as text.
    inside = re.search(rf"\b({'|'.join(CANNOT_RUN)})\b", report["message"]) if "Worker" in report["error"] else None
    return f"{report['error']}: {line}" if inside else ""


def _not_the_copy(run: PytestRun, folder: Path) -> list[str]:
    if run.code is None:
        return ["the tests did not end before the deadline"]
    if run.package is None or not Path(run.package).resolve().is_relative_to(folder):
        return [f"the tests saw {run.package or 'no cai_dist'}, not the copy in {folder}"]
    return []


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def try_mutant(mutant: Mutant, folder: Path) -> Verdict:
    """Mutate the copy in `folder`, run the named tests, put the file back."""
    path = folder / mutant.file
    began = time.monotonic()
    try:
        original = path.read_text(encoding="utf-8")
        path.write_text(mutant.applied(original), encoding="utf-8")
    except (OSError, TableError) as error:
        return Verdict(Outcome.BROKEN, str(error))
    try:
        verdict = judge(mutant, run_tests(folder, mutant.tests, mutant.deadline), folder)
    finally:
        path.write_text(original, encoding="utf-8")
    return Verdict(verdict.outcome, verdict.reason, time.monotonic() - began)


def run_all(
    mutants: Sequence[Mutant], say: Callable[[str], None], root: Path = ROOT, jobs: int = 1, patience: float = 1.0
) -> bool:
    """Try every mutant, one line each; true where all were killed and the tests were green before.

    `jobs` mutants are tried at a time, each in a copy of its own; `patience` multiplies every deadline.
    """
    nodes = sorted({node for mutant in mutants for node in mutant.tests})
    if not nodes:  # pytest without names would run everything
        say("nothing to do")
        return False
    counts = dict.fromkeys(Outcome, 0)
    with ExitStack() as copies:
        folders: SimpleQueue[Path] = SimpleQueue()
        first = copies.enter_context(copied_tree(root))
        if problems := check_baseline(first, nodes, BASELINE_DEADLINE * patience):
            say("\n".join(["the tests must pass before anything is mutated:", *problems]))
            return False
        say(f"{len(nodes)} tests pass unmutated; {len(mutants)} mutants")
        for folder in (first, *(copies.enter_context(copied_tree(root)) for _ in range(jobs - 1))):
            folders.put(folder)

        def tried(mutant: Mutant) -> Verdict:
            folder = folders.get()
            try:
                return try_mutant(replace(mutant, deadline=mutant.deadline * patience), folder)
            finally:
                folders.put(folder)

        with ThreadPoolExecutor(jobs) as pool:
            for mutant, verdict in zip(mutants, pool.map(tried, mutants), strict=True):
                counts[verdict.outcome] += 1
                say(_line(mutant, verdict))
    say(", ".join(f"{count} {outcome.lower()}" for outcome, count in counts.items()))
    return counts[Outcome.KILLED] == len(mutants)


def _line(mutant: Mutant, verdict: Verdict) -> str:
    rows = ",".join(map(str, mutant.rows))
    reason = f"  {verdict.reason}" if verdict.reason else ""
    return f"{verdict.outcome:<8}  row {rows:<6} {mutant.name:<40} {verdict.seconds:5.1f} s{reason}"
