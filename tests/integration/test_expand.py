"""`cai-dist stage expand` on real Ray workers and a random model: killed in the middle and started again, it ends with
the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cai_dist.config.run import WorldConfig
from cai_dist.data.near_duplicates import words_of
from cai_dist.stages.tables.records import read_prompts
from cai_dist.world import lexicon
from cai_dist.world.build import write_initial_model

DEADLINE = 900.0


def run_file(folder: Path) -> Path:
    """A run with a random model, prompts from files, and a few new prompts wanted."""
    write_initial_model(WorldConfig(hidden_size=32, layers=1, heads=1, intermediate_size=32), 0, folder / "model")
    for kind, extra in (("red_team", "mock ann ."), ("helpful", "greet bob .")):
        lines = [
            json.dumps({"prompt": f"make {k} {m} ? {extra}"})
            for k, m in zip(lexicon.KINDS, lexicon.MATERIALS, strict=False)
        ]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")
    sources = {kind: {"source": str(folder / f"{kind}.jsonl"), "heldout": 3} for kind in ("red_team", "helpful")}
    run = {
        "name": "x",
        "runs_dir": str(folder / "runs"),
        "constitution": "micro",
        "models": {**dict.fromkeys(("assistant", "pretrained", "feedback"), str(folder / "model")), "context": 128},
        "data": {**sources, "helpful_comparisons": {"source": "none"}},
        "preference": {"helpful_fraction": 0.0},
        "feedback": {"min_option_mass": 0.0},  # a model that has learnt nothing
        "expand": {"prompts": 12, "few_shot": 2, "shard_size": 4, "tries": 6, "sampling": {"max_new_tokens": 24}},
        "tracking": {"wandb": "off", "console": "plain"},
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(run))  # JSON is YAML, too
    return path


def command(path: Path, runs: Path) -> list[str]:
    # no rollout of other stages: their token limits only have to fit in the context
    limits = [f"{stage}.sampling.max_new_tokens=24" for stage in ("revise", "feedback", "ppo", "evaluate")]
    return [sys.executable, "-m", "cai_dist", "stage", "expand", str(path), f"runs_dir={runs}", *limits]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def digests(runs: Path) -> dict[str, str]:
    folder = runs / "x" / "expand"
    # A kill in the middle of a write may leave its temporary file, which nobody reads.
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def finish(path: Path, runs: Path) -> None:
    done = subprocess.run(
        command(path, runs), capture_output=True, text=True, timeout=DEADLINE, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout


def killed_in_the_middle(path: Path, runs: Path) -> Path | None:
    """Start the stage, kill it when its first wave has written something; None if it was over by then."""
    process = subprocess.Popen(
        command(path, runs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    deadline = time.monotonic() + DEADLINE
    while not list((runs / "x" / "expand").glob("wave-0/*.parquet")):
        if process.poll() is not None:
            break
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    return None if (runs / "x" / "expand" / "red_team.parquet").exists() else runs


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_writes_prompts_and_goes_on_from_the_shards_that_are_there(tmp_path: Path) -> None:
    path = run_file(tmp_path)
    finish(path, tmp_path / "whole")
    whole = digests(tmp_path / "whole")
    assert {"red_team.parquet", "transcripts.md", "examples/00000.parquet", "wave-1/00000.parquet"} <= set(whole)
    made = read_prompts(tmp_path / "whole" / "x" / "expand" / "red_team.parquet")
    assert made and len({words_of(p.turns[0].text) for p in made}) == len(made)

    # As a kill behind its first shard leaves it.
    runs = tmp_path / "parts"
    shutil.copytree(tmp_path / "whole", runs)
    manifest = runs / "x" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"stages": {}}))
    first = {"examples/00000.parquet", "wave-0/00000.parquet"}
    for name in digests(runs):
        if not name.endswith(".json") and name not in first:
            (runs / "x" / "expand" / name).unlink()
    goes_on(path, runs, whole)


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(1800)
def test_killed_and_started_again_it_writes_the_same_prompts(tmp_path: Path) -> None:
    path = run_file(tmp_path)
    finish(path, tmp_path / "whole")
    # On a busy machine the stage may be over before this process has looked: another folder, another try.
    runs = next(filter(None, (killed_in_the_middle(path, tmp_path / f"parts-{n}") for n in range(5))), None)
    assert runs, "five times the stage ended before it could be killed"
    goes_on(path, runs, digests(tmp_path / "whole"))


def goes_on(path: Path, runs: Path, whole: dict[str, str]) -> None:
    """Started again, the stage ends with the files of `whole` and has left those alone that were there."""
    kept = {name: (runs / "x" / "expand" / name).stat().st_mtime_ns for name in digests(runs)}
    assert "red_team.parquet" not in kept and "wave-0/00000.parquet" in kept
    finish(path, runs)
    assert digests(runs) == whole
    again = {name: (runs / "x" / "expand" / name).stat().st_mtime_ns for name in kept}
    assert again == kept, "what was there has not been made again"
