"""Makes docs/correctness.md from the table of mutations: `python -m tests.mutants.page`."""

from __future__ import annotations

from tests.mutants.table import ROOT, Mutant, Row, Table, load

PAGE = ROOT / "docs" / "correctness.md"

HEAD = """# Correctness

The known bugs of systems like this one, what holds here instead, and how it is known that a test would notice: the last
column is a change of one line that puts the bug in, and with it the test beside it fails.

    make mutants                        # every mutation, on a copy of the tree, one after the other
    make mutants ARGS="--row 4"         # those of one row; --name NAME: one alone; --quick: a handful

A mutation counts as killed only where each of its tests runs and *fails*: code that no longer imports or ends in a
NameError, or a run past its deadline (unless the bug is a deadlock), is reported as broken. First all tests must pass
unmutated. This page is made from `tests/mutants/tables/` (`python -m tests.mutants.page`); a test compares them.
Rows 14 to 17 and 29 of the list are about weight transfer and engines (`tests/integration/test_transfer.py`,
`tests/integration/test_weight_transfer.py`, `tests/unit/engines/test_weights.py`) and not in the table.

Besides the tests of single rows there are independent references, which share no code with what they check:

| reference | compared with | where |
|---|---|---|
"""

REFERENCES = (
    (
        "a PPO step in plain torch, one process: log-probs, rewards, KL controller, GAE, whitening, clipped losses, "
        "AdamW with gradient clipping",
        "three iterations on real Ray actors, on one rank and on two with ZeRO-1, 2, 3; policy and value parameters "
        "equal to 1e-5",
        "tests/integration/test_reference_ppo.py",
    ),
    (
        "GAE as the double sum of its definition, O(T²)",
        "rewards, advantages and returns of the coordinator",
        "tests/unit/correctness/test_gae_reference.py",
    ),
    (
        "KL summed over every sequence of a tiny vocabulary",
        "estimators, the shaped reward and its gradient",
        "tests/unit/correctness/test_kl_reference.py",
    ),
    (
        "passes of plain transformers over one sequence at a time",
        "log-probs, entropies, values and scores of packed and of padded batches",
        "tests/unit/correctness/test_model_passes.py",
    ),
    (
        "central differences in float64",
        "the gradient of every loss",
        "tests/unit/correctness/test_finite_differences.py",
    ),
)


def page(table: Table) -> str:
    """The whole page as Markdown."""
    lines = [HEAD.rstrip("\n")]
    lines += [f"| {what} | {against} | `{where}` |" for what, against, where in REFERENCES]
    lines += ["", "| row | bug | what holds | test | mutation that turns it red |", "|---|---|---|---|---|"]
    for number in sorted(table.rows):
        lines += _lines(table.rows[number], table.of_row(number))
    return "\n".join(lines) + "\n"


def _lines(row: Row, mutants: list[Mutant]) -> list[str]:
    lines = []
    for place, mutant in enumerate(mutants):
        head = f"| {row.number} | {row.bug} | {row.property} |" if place == 0 else "| | | |"
        tests = "<br>".join(f"`{_short(test)}`" for test in mutant.tests)
        change = f"`{mutant.file}`<br>{_code(mutant.old)}<br>→ {_code(mutant.new)}"
        lines.append(f"{head} {tests} | {change} |")
    return lines


def _short(test: str) -> str:
    return test.replace("|", "\\|")


def _code(text: str) -> str:
    """One line of code inside a table cell."""
    line = " ".join(text.split()).replace("|", "\\|")
    return f"`` {line} ``" if "`" in line else f"`{line}`" if line else "(nothing)"


def main() -> None:
    PAGE.write_text(page(load()), encoding="utf-8")


if __name__ == "__main__":
    main()
