"""How a figure becomes a page: a table, claims and a picture. A claim that does not hold says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from figures_measures import Calibration, Measures

Measured = Mapping[str, Mapping[int, Measures]]
"""Variant -> seed -> what was measured."""
Drawing = Callable[[Any], None]
"""Draws into a matplotlib Axes."""


@dataclass(frozen=True)
class Page:
    """One figure."""

    title: str
    about: str
    """What is measured, in a sentence or two."""
    head: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    claims: Sequence[tuple[str, bool]]
    draw: Drawing
    note: str = ""


def write_page(name: str, page: Page, folder: Path) -> None:
    """`NAME.md`, and `NAME.png` where matplotlib is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = _draw(page, folder / f"{name}.png")
    lines = [
        f"# {page.title} (micro-world)",
        "",
        page.about,
        "",
        *([f"![{page.title}, micro-world]({name}.png)", ""] if drawn else []),
        "| " + " | ".join(page.head) + " |",
        "|" + "---|" * len(page.head),
        *("| " + " | ".join(row) + " |" for row in page.rows),
        "",
        "| claim | |",
        "|---|---|",
        *(f"| {text} | {'holds' if holds else '**does not hold**'} |" for text, holds in page.claims),
        *(["", page.note] if page.note else []),
        "",
        f"By `python benchmarks/figures.py {name}`; all numbers: `benchmarks/results/figure-{name}.json`.",
    ]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


def _draw(page: Page, path: Path) -> bool:
    try:
        import matplotlib
    except ImportError:
        print("no picture: pip install -c constraints.txt -e '.[figures]'")
        return path.exists()
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), dpi=120)
    page.draw(axes)
    axes.set_title(f"{page.title} (micro-world)", fontsize=10)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return True


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and range over seeds."""
    return f"{fmean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def each(runs: Mapping[int, Measures], value: Callable[[Measures], float]) -> list[float]:
    """A value of every seed."""
    return [value(m) for m in runs.values()]


def curves(measured: Measured, names: Mapping[str, str], axes: Any) -> None:
    """Harm by round: a line for the mean of each variant, a thin one for each seed."""
    for number, (variant, title) in enumerate(names.items()):
        runs = measured[variant].values()
        for m in runs:
            axes.plot(range(len(m.harm)), m.harm, color=f"C{number}", linewidth=0.6, alpha=0.5)
        mean = [fmean(column) for column in zip(*(m.harm for m in runs), strict=True)]
        axes.plot(range(len(mean)), mean, color=f"C{number}", marker="o", label=title)
    axes.set_xlabel("revisions")
    axes.set_ylabel("share of harmful answers")
    axes.set_xticks(range(len(mean)))
    axes.legend()


def harm_rows(measured: Measured, names: Mapping[str, str]) -> list[list[str]]:
    rows = []
    for variant, title in names.items():
        columns = zip(*(m.harm for m in measured[variant].values()), strict=True)
        rows.append([title, *(spread(column) for column in columns)])
    return rows


def rounds_head(measured: Measured) -> tuple[str, ...]:
    length = len(next(iter(measured["demo"].values())).harm)
    return ("", *(f"round {k}" for k in range(length)))


def reliability(curves: Mapping[str, Sequence[Calibration]], axes: Any, outcome: str) -> None:
    axes.plot((0, 1), (0, 1), color="grey", linewidth=0.8, linestyle="--")
    for number, (title, found) in enumerate(curves.items()):
        together = Calibration(
            tuple(p for c in found for p in c.predicted), tuple(o for c in found for o in c.outcomes)
        )
        predicted, frequency, _ = zip(*together.bins(), strict=True)
        axes.plot(predicted, frequency, color=f"C{number}", marker="o", label=f"{title} (n={together.n})")
    axes.set_xlabel("p(A)")
    axes.set_ylabel(outcome)
    axes.legend()
