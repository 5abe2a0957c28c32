"""The schedules of PPO on the micro-world demo: quality and wall time of the ppo stage, and who did what when.

    python benchmarks/schedules.py [--seeds 0 1 2] [--schedules sync one_step_off partial] [key=value …]

Each seed runs once per schedule from the same SL-CAI and preference model: the earlier stages are made once (with a
single iteration of PPO, which is thrown away) and copied, so that the ppo stage of each begins with the start of Ray.
The schedules of a seed follow each other directly: a ratio compares the same machine at the same time. Writes
benchmarks/results/NAME.json and .md and, where matplotlib is installed, docs/figures/timeline-SCHEDULE.png. A run
that is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILES = {"sync": "demo.yaml", "one_step_off": "demo-one-step-off.yaml", "partial": "demo-partial.yaml"}
MEASURES = ("danger", "help_safe", "over_refusal")
Results = Mapping[str, Mapping[int, dict[str, float]]]
"""Schedule -> seed -> figures."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--schedules", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/schedules"))
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--name", default="schedules", help="of the results; the default draws figures")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    results: dict[str, dict[int, dict[str, float]]] = {name: {} for name in arguments.schedules}
    for seed in arguments.seeds:
        base = arguments.runs_dir / f"base-{seed}"
        run(ROOT / "launch" / "runs" / FILES["sync"], base, seed, [*arguments.overrides, "ppo.iterations=1"])
        for name in arguments.schedules:
            folder = arguments.runs_dir / f"{name}-{seed}"
            if not folder.exists():
                copy_earlier_stages(base, folder)
            run(ROOT / "launch" / "runs" / FILES[name], folder, seed, arguments.overrides)
            results[name][seed] = figures_of(folder)
    arguments.results.mkdir(parents=True, exist_ok=True)
    content = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "overrides": arguments.overrides,
        "results": results,
    }
    (arguments.results / f"{arguments.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    text = table(results, arguments.overrides)
    (arguments.results / f"{arguments.name}.md").write_text(text)
    print(text)
    for name in arguments.schedules if arguments.name == "schedules" else ():
        timeline = arguments.runs_dir / f"{name}-{arguments.seeds[0]}" / "ppo" / "timeline.json"
        draw(name, json.loads(timeline.read_text()), arguments.figures / f"timeline-{name.replace('_', '-')}.png")


def copy_earlier_stages(source: Path, folder: Path) -> None:
    """Everything but the stages from ppo on; the manifest then finds their inputs as they should be."""
    shutil.copytree(
        source, folder, ignore=shutil.ignore_patterns("ppo", "evaluate", "report", "evaluation.json", "*.old*")
    )


def run(file: Path, folder: Path, seed: int, overrides: Sequence[str]) -> None:
    """One run by the command that a user types; ends this script where it fails."""
    if (folder / "evaluation.json").is_file():
        return
    settings = [f"seed={seed}", f"name={folder.name}", f"runs_dir={folder.parent.resolve()}", "tracking.wandb=off"]
    command = [sys.executable, "-m", "cai_dist", "run", str(file), *settings, *overrides]
    if subprocess.run(command, cwd=ROOT).returncode:
        sys.exit(f"{' '.join(command)} failed")


def figures_of(folder: Path) -> dict[str, float]:
    """Final quality, wall seconds of the ppo stage with its start, the median iteration, and mean idle shares."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    measured = evaluation["models"]["rl"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ppo = [line for line in lines if line["stage"] == "ppo"]
    found = {name: measured[name]["value"] for name in MEASURES}
    found["score"] = ppo[-1]["score"]
    found["seconds"] = json.loads((folder / "manifest.json").read_text())["stages"]["ppo"]["seconds"]
    # Between two log lines lies one iteration, checkpoint included; the first one has warm-up in it.
    found["iteration_seconds"] = median(b["time"] - a["time"] for a, b in zip(ppo, ppo[1:], strict=False))
    for name in sorted({name for line in ppo for name in line if name.startswith("idle_")}):
        found[name] = fmean(line[name] for line in ppo if name in line)
    return found


def table(results: Results, overrides: Sequence[str]) -> str:
    """Means over the seeds with their range, and the ratio of each seed's wall times."""
    columns = [*MEASURES, "score", "seconds", "iteration_seconds"]
    roles = sorted({name for seeds in results.values() for found in seeds.values() for name in found} - {*columns})
    base = results.get("sync")
    lines = [
        "# Schedules of PPO on the micro-world demo",
        "",
        f"Mean over seeds {', '.join(map(str, next(iter(results.values()))))} (smallest to largest)."
        + (f" Overrides: `{' '.join(overrides)}`." if overrides else ""),
        "",
        "| schedule | " + " | ".join([*columns, "seconds of sync", "iteration of sync"]) + " |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for name, seeds in results.items():
        cells = [spread([found[column] for found in seeds.values()]) for column in columns]
        for column in ("seconds", "iteration_seconds"):
            cells.append(spread([seeds[s][column] / base[s][column] for s in seeds]) if base else "–")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Idle share of each role, mean over iterations and seeds:", ""]
    lines += ["| schedule | " + " | ".join(role.removeprefix("idle_") for role in roles) + " |"]
    lines += ["|---" * (len(roles) + 1) + "|"]
    for name, seeds in results.items():
        shares = [f"{fmean(found.get(role, 1.0) for found in seeds.values()):.2f}" for role in roles]
        lines.append(f"| {name} | " + " | ".join(shares) + " |")
    return "\n".join(lines) + "\n"


def spread(numbers: Sequence[float]) -> str:
    return f"{fmean(numbers):.3g} ({min(numbers):.3g} – {max(numbers):.3g})"


def draw(name: str, trace: Sequence[dict[str, Any]], path: Path) -> None:
    """Two iterations from the middle of the run, a row for each worker, a colour for each phase."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no figure")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    roles = {event["pid"]: event["args"]["name"] for event in trace if event["ph"] == "M"}
    spans = [event for event in trace if event["ph"] == "X"]
    last = max(event["args"]["iteration"] for event in spans)
    middle = max(1, last // 2)
    shown = [event for event in spans if event["args"]["iteration"] in (middle, middle + 1)]
    rows = sorted({(event["pid"], event["tid"]) for event in shown})
    phases = sorted({event["name"] for event in shown})
    start = min(event["ts"] for event in shown)
    colours = plt.get_cmap("tab20")
    figure, axes = plt.subplots(figsize=(11, 0.35 * len(rows) + 1.6))
    for number, phase in enumerate(phases):
        for place, row in enumerate(rows):
            bars = [
                ((event["ts"] - start) / 1e6, event["dur"] / 1e6)
                for event in shown
                if event["name"] == phase and (event["pid"], event["tid"]) == row
            ]
            axes.broken_barh(bars, (place - 0.4, 0.8), color=colours(number % 20), label=phase if not place else None)
    axes.set_yticks(range(len(rows)), [f"{roles[pid]} {tid}" for pid, tid in rows])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_title(f"{name}: iterations {middle} and {middle + 1}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main()
