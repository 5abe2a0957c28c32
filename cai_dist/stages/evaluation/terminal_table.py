"""The table on the terminal at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai_dist.report.evaluation import ELO, MEASURED, MODELS, title_of
from cai_dist.tracking.console import Console
from cai_dist.tracking.manifest import read_manifest
from cai_dist.tracking.run_folder import RunFolder


def show_results(console: Console, run_dir: Path, evaluation: dict[str, Any]) -> None:
    """base, SL-CAI and the aligned model with 95% intervals, harm by revision, and where everything lies."""
    models = evaluation["models"]
    metrics = list(dict.fromkeys(m for figures in models.values() for m in figures))
    rows = [[metric, *(_cell(models[name].get(metric)) for name in MODELS if name in models)] for metric in metrics]
    console.table(
        f"held-out prompts, judged by the {evaluation['judge']} (95% intervals over prompts, not over trainings)",
        ["", *(title for name, title in MODELS.items() if name in models)],
        rows,
    )
    if later := evaluation.get("later_turns"):
        _show_later(console, later)
    harm = evaluation["harm_by_revision"]
    if harm:
        console.say("harm by revision round: " + "  ".join(f"{i}: {h:.2f}" for i, h in enumerate(harm)))
    for line in (*_elo(evaluation.get("elo", {})), *_gate(evaluation.get("gate") or {})):
        console.say(line)
    told = (f"{title}: {_pairs(evaluation[key])}" for key, title in MEASURED.items() if key in evaluation)
    console.say(";  ".join(told))
    console.say("written:")
    for path in written(run_dir):
        console.say(f"  {path}")


def _show_later(console: Console, later: dict[str, Any]) -> None:
    models = {name: figures for name, figures in later["models"].items() if name in MODELS}
    metrics = dict.fromkeys(m for figures in models.values() for m, f in figures.items() if f["value"] is not None)
    console.table(
        f"later in the conversation (environment {later['environment']})",
        ["", *(MODELS[name] for name in models)],
        [["answers", *(str(later["answers"][name]) for name in models)]]
        + [[metric, *(_cell(figures.get(metric)) for figures in models.values())] for metric in metrics],
    )


def written(run_dir: Path) -> list[str]:
    """The outputs of every stage and the files of the run itself."""
    stages = read_manifest(run_dir)["stages"].values()
    outputs = [o for stage in stages for o in stage["outputs"]]
    paths = RunFolder(run_dir)
    return [
        *(str(run_dir / name) for name in outputs),
        *(str(p) for p in (paths.config, paths.manifest, paths.metrics)),
    ]


def _elo(elo: dict[str, Any]) -> Iterator[str]:
    for what in (what for what in ELO if what in elo):
        shown = (
            f"{title_of(name)} {f['value']:+.0f} ({f['low']:+.0f} to {f['high']:+.0f})" for name, f in elo[what].items()
        )
        yield f"Elo, {what}: {';  '.join(shown)}"


def _gate(gate: dict[str, Any]) -> Iterator[str]:
    if gate.get("passed") is not None:
        yield f"gate: {'passed' if gate['passed'] else 'NOT passed'}"
    yield from gate.get("failures", [])


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    return f"{figure['value']:.2f} ({figure['low']:.2f}–{figure['high']:.2f})"


def _pairs(numbers: dict[str, Any]) -> str:
    shown = (f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items() if v is not None)
    return ", ".join(shown) or "not measured"
