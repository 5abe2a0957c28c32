"""The command `cai-dist run` on small run files, in a process of its own: started, killed, looked at."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

TINY = Path(__file__).with_name("tiny.yaml")
DEADLINE = 900.0
"""Seconds until a run counts as hanging; on an idle machine it takes one."""


def command(run_file: Path, runs: Path, *overrides: str, stage: Sequence[str] = ()) -> list[str]:
    """The whole run, or one stage of it."""
    what = ["stage", *stage] if stage else ["run"]
    return [sys.executable, "-m", "cai_dist", *what, str(run_file), f"runs_dir={runs}", *overrides]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def run(run_file: Path, runs: Path, *overrides: str, stage: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(run_file, runs, *overrides, stage=stage),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env=environment(),
        check=False,
    )


def kill_when(run_file: Path, runs: Path, there: Callable[[], bool]) -> None:
    """Start the run and SIGKILL its driver as soon as `there` says so; it must not have ended by then."""
    process = subprocess.Popen(
        command(run_file, runs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    deadline = time.monotonic() + DEADLINE
    try:
        while not there():
            assert process.poll() is None, "the run ended before its middle"
            assert time.monotonic() < deadline, "the run never reached its middle"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)


def lines_of(run_dir: Path, stage: str) -> list[dict[str, object]]:
    """What a stage has logged so far."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")  # the last line may be half written
    return [line for line in map(json.loads, whole.splitlines()) if line["stage"] == stage]


def shards(run_dir: Path, folder: str) -> int:
    return len(list((run_dir / folder).glob("*.parquet")))


def digests(run_dir: Path) -> dict[str, str]:
    """Hash of every table and every weight file that the finished run holds."""
    kept = [p for pattern in ("**/*.parquet", "**/*.safetensors") for p in run_dir.glob(pattern)]
    return {str(p.relative_to(run_dir)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(kept)}


def copy_without(whole: Path, run_dir: Path, stages: Collection[str]) -> None:
    """A copy of a finished run as it was before `stages` had begun."""
    shutil.copytree(whole, run_dir)
    path = run_dir / "manifest.json"
    manifest = json.loads(path.read_text())
    for stage in stages:
        del manifest["stages"][stage]
        shutil.rmtree(run_dir / stage, ignore_errors=True)
    path.write_text(json.dumps(manifest))
    if "evaluate" in stages:
        (run_dir / "evaluation.json").unlink()
        shutil.rmtree(run_dir / "report")
    metrics = run_dir / "metrics.jsonl"
    kept = [line for line in metrics.read_text().splitlines() if json.loads(line)["stage"] not in stages]
    metrics.write_text("".join(f"{line}\n" for line in kept))
