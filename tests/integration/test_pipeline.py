"""The command `cai-dist run` as a user types it: all stages on real Ray and DeepSpeed; killed in the middle of a stage
and started again, it ends with the same files (of every stage: with --full)."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.pipeline import (
    DEADLINE,
    TINY,
    command,
    copy_without,
    digests,
    environment,
    kill_when,
    lines_of,
    run,
    shards,
)

# In the middle of a stage: something of it is done, something is not.
MIDDLES: dict[str, Callable[[Path], bool]] = {
    "pretrain": lambda d: len(lines_of(d, "pretrain")) >= 3,
    "revise": lambda d: shards(d, "revise/critique-1") >= 1,
    "sft": lambda d: len(lines_of(d, "sft")) >= 4,
    "feedback": lambda d: shards(d, "feedback/pairs") >= 2,
    "pm_pretraining": lambda d: len(lines_of(d, "pm_pretraining")) >= 3,
    "preference": lambda d: len(lines_of(d, "preference")) >= 4,
    "preference_second": lambda d: len(lines_of(d, "preference_second")) >= 4,
    "ppo": lambda d: len(lines_of(d, "ppo")) >= 3,
    "evaluate": lambda d: shards(d, "evaluate/answers-base") >= 1,
    "rating": lambda d: len(lines_of(d, "rating")) >= 4,
}


# What each of these leaves to go on from is made by the same code as in the other stages: checkpoints of a training,
# checkpoints of PPO. (Shards: test_expand.py.)
EVERY_MECHANISM = ("sft", "ppo")


def kill_in_the_middle(runs: Path, stage: str) -> None:
    """Start the run and SIGKILL its driver when `stage` is half done."""
    kill_when(TINY, runs, lambda: MIDDLES[stage](runs / "tiny"))


def steps_follow(run_dir: Path, stages: Iterable[str]) -> None:
    for stage in stages:
        logged = [line["step"] for line in lines_of(run_dir, stage) if line["step"] > 0]
        assert logged and logged == sorted(set(logged)), f"{stage}: a step is logged twice or out of order"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_stages_leave_what_they_promise(whole: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_text())
    assert list(manifest["stages"]) == ["prepare", "revise", "sft", "feedback", "preference", "ppo", "evaluate"]
    for entry in manifest["stages"].values():
        assert entry["status"] == "done"
        assert entry["seconds"] > 0
        assert all(len(sha) == 64 for sha in entry["inputs"].values())
        assert all((whole / path).exists() for path in entry["outputs"])
    assert len(manifest["constitution"]) == 64
    evaluation = json.loads((whole / "evaluation.json").read_text())
    assert set(evaluation["models"]) == {"base", "sl", "rl"}
    for figures in evaluation["models"].values():
        for name in ("danger", "rude", "engaged", "evasive", "help_safe", "over_refusal"):
            assert 0 <= figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"] <= 1
            assert figures[name]["n"] > 0
    assert len(evaluation["harm_by_revision"]) == len(evaluation["pm_score_by_revision"]) == 3
    assert [p["model"] for p in evaluation["frontier"]] == ["base", "sl", "rl@2", "rl"]
    assert evaluation["elo"]["harmlessness"]["base"]["value"] == 0
    assert len(evaluation["elo"]["wins"]["helpfulness"]) == 6
    assert set(evaluation["measures"]) == set(evaluation["absolute_harm"]["greedy"]) == {"base", "sl", "rl"}
    assert evaluation["multiple_choice"]["world"]["models"]["rl"]["accuracy"]["n"] == 120
    assert evaluation["gate"]["passed"] is None
    assert set(evaluation["robustness"]) == {"base", "sl", "rl@2", "rl"}
    for line in (whole / "metrics.jsonl").read_text().splitlines():
        assert {"stage", "step", "time"} <= set(json.loads(line))
    assert (whole / "report" / "index.html").stat().st_size > 1000


@pytest.mark.slow
def test_every_series_of_metrics_stands_in_the_documentation(whole: Path) -> None:
    page = Path("docs/running.md").read_text()
    table = page[page.index("### metrics.jsonl") : page.index("### evaluation.json")]
    documented = {name for row in table.splitlines() if row.startswith("| `") for name in row.split("|")[1].split("`")}
    lines = map(json.loads, (whole / "metrics.jsonl").read_text().splitlines())
    written = {re.sub("^(evaluate_[a-z]+-).*", r"\1MODEL", line["stage"]) for line in lines}
    assert len(written) > 15
    assert written <= documented


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_everything_made_under_the_constitution_says_so(whole: Path) -> None:
    sha256 = json.loads((whole / "manifest.json").read_text())["constitution"]
    tables = ("revise/revisions.parquet", "revise/helpful.parquet", "feedback/comparisons.parquet")
    notes = [json.loads(pq.read_schema(whole / path).metadata[b"constitution"]) for path in tables]
    notes += [
        json.loads((whole / p).read_text())["constitution"] for p in ("preference/heldout.json", "evaluation.json")
    ]
    models = [p.parent for stage in ("sft", "preference", "ppo") for p in (whole / stage).rglob("config.json")]
    assert len(models) >= 3
    notes += [json.loads((model / "constitution.json").read_text()) for model in models]
    assert all(note == {"name": "micro", "version": "1", "sha256": sha256, "without": []} for note in notes)
    assert sha256 in (whole / "report" / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_saved_models_load_with_plain_transformers(whole: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    for folder in ("sft/model", "ppo/model"):
        model = AutoModelForCausalLM.from_pretrained(whole / folder)
        tokenizer = AutoTokenizer.from_pretrained(whole / folder)
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": "make cake salt ?"}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        assert model(ids).logits.isfinite().all()
    scorer = AutoModelForSequenceClassification.from_pretrained(whole / "preference" / "model")
    assert scorer.config.num_labels == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_and_started_again_it_ends_with_the_same_files(whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "tiny"
    copy_without(whole, run_dir, EVERY_MECHANISM)
    for stage in EVERY_MECHANISM:
        kill_in_the_middle(tmp_path, stage)
    ends_as(whole, tmp_path)
    steps_follow(run_dir, EVERY_MECHANISM)


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(3600)
def test_killed_in_every_stage_it_ends_with_the_same_files(whole: Path, tmp_path: Path) -> None:
    for stage in MIDDLES:
        kill_in_the_middle(tmp_path, stage)
    ends_as(whole, tmp_path)
    trained = ("pretrain", "sft", "pm_pretraining", "preference", "preference_second", "ppo", "rating")
    steps_follow(tmp_path / "tiny", trained)


def ends_as(whole: Path, runs: Path) -> None:
    """Started once more, the run ends with the files of the one that went through."""
    done = run(TINY, runs)
    assert done.returncode == 0, done.stderr
    assert digests(runs / "tiny") == digests(whole)
    one, two = (json.loads((d / "evaluation.json").read_text()) for d in (whole, runs / "tiny"))
    assert one == two


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_finished_run_answers_at_once_and_starts_nothing(whole: Path) -> None:
    before = digests(whole)
    again = run(TINY, whole.parent)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before, skipped") == 7
    assert "starting" not in again.stdout
    assert digests(whole) == before


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_signal_saves_and_exits_75(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(TINY, tmp_path, "world.pretrain.max_steps=2000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    deadline = time.monotonic() + DEADLINE
    while len(lines_of(tmp_path / "tiny", "pretrain")) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=300)
    assert process.returncode == 75, complaint
    assert "go on with" in complaint
    assert "Traceback" not in complaint
    entry = json.loads((tmp_path / "tiny" / "manifest.json").read_text())["stages"]["prepare"]
    assert entry["status"] == "running"
    assert list((tmp_path / "tiny" / "prepare" / "pretrain" / "checkpoints").glob("step-*"))
