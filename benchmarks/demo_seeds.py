"""The demo over several seeds (each its own world, pretraining and pipeline) and kinds of machine, as tables.

    python benchmarks/demo_seeds.py [--seeds 0 1 2] [--file launch/runs/demo.yaml] [key=value …]
    python benchmarks/demo_seeds.py --readme                  # run nothing: write the pages from what is stored
    python benchmarks/demo_seeds.py --forget COMMIT           # and leave out what code of that commit gave

Runs what is not finished and stores it in benchmarks/results/NAME-seeds.json, beside what was stored before; a run of
the same seed, settings and kind of machine replaces its predecessor. Then writes benchmarks/results/NAME-seeds.md and,
of the demo without other settings, the table in README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from demo_seeds_pages import readme_with, seeds_page

ROOT = Path(__file__).parent.parent
KEPT = ("judge", "models", "harm_by_revision", "labels", "preference_model", "elo")
"""What is stored of an evaluation."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--file", type=Path, default=Path("launch/runs/demo.yaml"))
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--readme", action="store_true", help="run nothing; write the pages from what is stored")
    parser.add_argument("--forget", default="", metavar="COMMIT", help="drop what this commit gave; runs nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    name = arguments.file.stem
    store = ROOT / "benchmarks" / "results" / f"{name}-seeds.json"
    stored = json.loads(store.read_text()) if store.exists() else {"file": str(arguments.file), "runs": []}
    if arguments.forget:
        stored["runs"] = [one for one in stored["runs"] if not one["commit"].startswith(arguments.forget)]
    elif not arguments.readme:
        for seed in arguments.seeds:
            folder = run(arguments.file, arguments.runs_dir, f"{name}-{seed}", seed, arguments.overrides)
            stored["runs"] = with_run(stored["runs"], result(folder, seed, arguments.overrides))
    store.parent.mkdir(exist_ok=True)
    store.write_text(json.dumps(stored, indent=1) + "\n")
    write_pages(name, stored)


def write_pages(name: str, stored: dict[str, Any]) -> None:
    """The page of all runs, and README's table where they are the demo's."""
    page = seeds_page(name, stored["runs"])
    (ROOT / "benchmarks" / "results" / f"{name}-seeds.md").write_text(page)
    print(page)
    if name == "demo":
        readme = ROOT / "README.md"
        readme.write_text(readme_with(readme.read_text(encoding="utf-8"), stored["runs"]), encoding="utf-8")


def run(file: Path, runs_dir: Path, name: str, seed: int, overrides: list[str]) -> Path:
    """One run by the command that a user types; ends this script where it fails."""
    command = [sys.executable, "-m", "cai_dist", "run", str(file)]
    settings = [f"name={name}", f"runs_dir={runs_dir}", f"seed={seed}", "tracking.wandb=off"]
    done = subprocess.run([*command, *settings, *overrides], check=False)
    if done.returncode:
        sys.exit(f"seed {seed}: exit code {done.returncode}")
    return runs_dir / name


def result(folder: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
    """What is stored of a finished run."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    return {
        "seed": seed,
        "overrides": overrides,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "seconds": {stage: entry["seconds"] for stage, entry in stages.items()},
        "evaluation": {key: evaluation[key] for key in KEPT if key in evaluation},
    }


def with_run(runs: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """`runs` with `new` in place of that of the same seed, settings and kind of machine."""

    def same(one: dict[str, Any]) -> bool:
        return all(one[key] == new[key] for key in ("seed", "overrides", "machine"))

    kept = [one for one in runs if not same(one)]
    return sorted([*kept, new], key=lambda one: (one["overrides"], json.dumps(one["machine"]), one["seed"]))


def machine() -> dict[str, Any]:
    """The kind of this machine: what may change the last digits of a sum."""
    import torch

    told = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""

    def cpu(what: str) -> str:
        found = re.search(rf"^{what}\s*: (.*)$", told, re.MULTILINE)
        return found[1].strip() if found else ""

    model = f"{cpu('model name')} (family {cpu('cpu family')}, model {cpu('model')})" if told else platform.processor()
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": metadata.version("torch"),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit of the code; `-dirty` where something was changed since."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
