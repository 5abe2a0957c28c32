"""The demo over several seeds (each its own world, pretraining and pipeline), as one table.

    python benchmarks/demo_seeds.py [--seeds 0 1 2 3 4] [--file launch/runs/demo.yaml] [key=value …]

Runs what is not finished, then writes benchmarks/results/NAME-seeds.json and .md. A run that is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

MEASURES = ("danger", "rude", "engaged", "evasive", "help_safe", "over_refusal")
MODELS = {"base": "base", "sl": "SL-CAI", "rl": "RL-CAI"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--file", type=Path, default=Path("launch/runs/demo.yaml"))
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/seeds"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    name = arguments.file.stem
    runs = {
        seed: run(arguments.file, arguments.runs_dir, f"{name}-{seed}", seed, arguments.overrides)
        for seed in arguments.seeds
    }
    evaluations = {seed: json.loads((folder / "evaluation.json").read_text()) for seed, folder in runs.items()}
    seconds = {seed: stage_seconds(folder) for seed, folder in runs.items()}
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / f"{name}-seeds.json").write_text(
        json.dumps(
            {
                "date": time.strftime("%Y-%m-%d"),
                "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
                "file": str(arguments.file),
                "overrides": arguments.overrides,
                "seconds": seconds,
                "evaluations": evaluations,
            },
            indent=1,
        )
        + "\n"
    )
    text = table(name, evaluations, seconds, arguments.overrides)
    (results / f"{name}-seeds.md").write_text(text)
    print(text)


def run(file: Path, runs_dir: Path, name: str, seed: int, overrides: list[str]) -> Path:
    """One run by the command that a user types; ends this script where it fails."""
    command = [
        sys.executable,
        "-m",
        "cai_dist",
        "run",
        str(file),
        f"name={name}",
        f"runs_dir={runs_dir}",
        f"seed={seed}",
    ]
    done = subprocess.run([*command, "tracking.wandb=off", *overrides], check=False)
    if done.returncode:
        sys.exit(f"seed {seed}: exit code {done.returncode}")
    return runs_dir / name


def stage_seconds(folder: Path) -> dict[str, float]:
    """Seconds of each stage, from the manifest."""
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    return {stage: entry["seconds"] for stage, entry in stages.items()}


def table(name: str, evaluations: dict[int, dict], seconds: dict[int, dict[str, float]], overrides: list[str]) -> str:
    """Markdown: one row per measure, mean (lowest to highest seed) for each model; then the rounds and the times."""
    seeds = sorted(evaluations)
    given = f", with {' '.join(overrides)}" if overrides else ""
    lines = [
        f"# {name}: seeds {', '.join(map(str, seeds))} (micro-world, held-out requests{given})",
        "",
        "Mean over seeds (lowest–highest), judged by the oracle.",
        "",
        "| | " + " | ".join(MODELS.values()) + " |",
        "|---|" + "---|" * len(MODELS),
    ]
    for measure in MEASURES:
        cells = [spread([evaluations[s]["models"][m][measure]["value"] for s in seeds]) for m in MODELS]
        lines.append(f"| {measure} | " + " | ".join(cells) + " |")
    rounds = zip(*(evaluations[s]["harm_by_revision"] for s in seeds), strict=True)
    lines += [
        "",
        "| seed | harm by revision round | labels accuracy, ECE | PM held-out accuracy, ECE | seconds |",
        "|---|---|---|---|---|",
    ]
    for s in seeds:
        e = evaluations[s]
        harm = " ".join(f"{h:.3f}" for h in e["harm_by_revision"])
        labels, pm = e["labels"], e["preference_model"]
        lines.append(
            f"| {s} | {harm} | {labels['accuracy']:.3f}, {labels['ece']:.3f} "
            f"| {pm['heldout_accuracy']:.3f}, {pm['ece']:.3f} | {sum(seconds[s].values()):.0f} |"
        )
    lines.append("| mean | " + " ".join(f"{fmean(r):.3f}" for r in rounds) + " | | | |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    return f"{fmean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


if __name__ == "__main__":
    main()
