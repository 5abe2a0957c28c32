"""Waits of the host for a GPU, counted on one that is not there (`tests/dry_gpu`): a call of each worker method.

    python benchmarks/dry_gpu_waits.py --out waits.json [--before earlier.json] [--page waits.md]

Run from the root of the checkout; in an earlier checkout with the same `tests/dry_gpu` it gives `earlier.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path


def measured() -> dict[str, dict[str, int]]:
    """By check and dtype, the waits of each line."""
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "tests.dry_gpu"], env=environment, capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    wrong = [line for line in lines if line["error"]]
    if wrong:
        raise SystemExit(f"{wrong[0]['check']}: {wrong[0]['error']}")
    return {line["check"]: line["waits"] for line in lines}


def page(now: dict[str, dict[str, int]], before: dict[str, dict[str, int]]) -> str:
    """One line a check: waits of a call then and now, and the lines that are left."""
    rows = [
        "# Host waits for a GPU",
        "",
        "Made by `benchmarks/dry_gpu_waits.py` on a GPU that is not there (`tests/dry_gpu`): no seconds, counts. A",
        "call of a step or of a scoring method has four micro-batches, one of them empty; a rollout ten prompts on",
        "eight rows with at most 16 tokens; the transfer is two, in several buckets each. A wait is a read of a number",
        "by the host, a mask as index, or a copy that is not both pinned and `non_blocking`.",
        "",
        "| call | before | now | what is left |",
        "|---|---:|---:|---|",
    ]
    for check, lines in now.items():
        then = str(sum(before[check].values())) if check in before else "–"
        places: Counter[str] = Counter()
        for line, count in lines.items():
            places[_place(line)] += count
        left = "; ".join(f"{count} × `{place}`" for place, count in places.items())
        rows.append(f"| {check} | {then} | {sum(lines.values())} | {left} |")
    return "\n".join(rows) + "\n"


def _place(line: str) -> str:
    """The file of a line that waits, without its number, which moves."""
    return line.split(": ", 1)[1].split(":")[0].removeprefix("cai_dist/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    now = measured()
    asked.out.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    if asked.page:
        before = json.loads(asked.before.read_text("utf-8")) if asked.before else {}
        asked.page.write_text(page(now, before), encoding="utf-8")


if __name__ == "__main__":
    main()
