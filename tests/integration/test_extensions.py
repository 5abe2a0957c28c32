"""The examples as a stranger has them: a package of another folder on PYTHONPATH, named in a run file; their workers
import it, too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.integration import pipeline

EXAMPLES = Path(__file__).parents[2] / "examples" / "my_extensions"
ONE = {"train": {"sharding": {"ranks": 1, "zero": 0}}}
RUN = {
    "extends": str(pipeline.TINY),
    "name": "mine",
    "alignment": "ppo",
    "engine": {"backend": "strangers.rollout_engine:FewAtATime", "training": "strangers.training_engine:Timed"},
    "data": {
        "helpful": {"source": "strangers.data_source:rows", "limit": 12, "heldout": 6},
        "harm_ratings": {"source": "none"},
        "ranked_answers": {"source": "none"},
    },
    "feedback": {"model": "strangers.feedback_model:Shorter"},
    "own_stages": [{"use": "strangers.stage:answer_lengths", "name": "lengths", "after": "revise"}],
    "sft": ONE,
    "preference": {"halves": False} | ONE,
    "ppo": {
        "algorithm": "strangers.algorithm:ranked",
        "samples_per_prompt": 2,
        "prompts_per_iteration": 4,
        "iterations": 2,
        "snapshot_every": None,
        "policy": {"ranks": 1, "zero": 0},
        "schedule": "strangers.schedule:Counted",
        "transfer": "strangers.transfer:one_at_a_time",
        "transfer_bucket_mb": 0.05,
        "environment": {"use": "strangers.environment:Impatient", "args": {"words": 2}},
        "rewards": [
            {"use": "preference_model", "weight": 1.0},
            {"use": "strangers.reward:length_penalty", "weight": 0.5, "args": {"per_token": 0.25}},
        ],
    },
    "evaluate": {"multiple_choice": []},
}


def start(folder: Path, *overrides: str, stage: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = pipeline.command(folder / "run.yaml", folder / "runs", *overrides, stage=stage)
    paths = [str(folder / "elsewhere"), str(Path(__file__).parents[2])]
    environment = pipeline.environment() | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=pipeline.DEADLINE, env=environment, cwd=folder, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_strangers_package_takes_part_in_every_stage(tmp_path: Path) -> None:
    package = tmp_path / "elsewhere" / "strangers"
    shutil.copytree(EXAMPLES, package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN), encoding="utf-8")
    done = start(tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    run_dir = tmp_path / "runs" / "mine"

    means = json.loads((run_dir / "lengths" / "lengths.json").read_text())["means"]
    stages = list(json.loads((run_dir / "manifest.json").read_text())["stages"])
    assert list(means) == ["0", "1", "2"] and stages[1:4] == ["revise", "lengths", "sft"]
    lines = pipeline.lines_of(run_dir, "ppo")
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        penalty, score, model = (line[f"{k}"] for k in ("reward_length_penalty", "score", "reward_preference_model"))
        assert isinstance(penalty, float) and isinstance(score, float) and isinstance(model, float)
        assert penalty < 0 and score == pytest.approx(model + 0.5 * penalty, abs=1e-5)
        assert 1 < float(str(line["turns"])) <= 2
        assert line["sync_samples"] == 8 * number and float(str(line["reward_length_penalty_seconds"])) > 0
        assert float(str(line["policy_step_seconds"])) > 0
    later = json.loads((run_dir / "evaluation.json").read_text())["later_turns"]
    assert later["environment"] == RUN["ppo"]["environment"]["use"]  # type: ignore[index]
    assert set(later["answers"]) == set(later["models"]) == {"base", "sl", "rl"} and later["answers"]["rl"] > 5
    samples = list(map(json.loads, (run_dir / "ppo/transcripts/iteration-00001.jsonl").read_text().splitlines()))
    talk = next(sample for sample in samples if "before" in sample)
    assert len(talk["before"]) == 2 and talk["before"][1] == talk["prompt"]
    principles = json.loads((run_dir / "feedback" / "principles.json").read_text())
    assert principles["option_mass"] == pytest.approx(1.0, abs=1e-5)

    again = start(tmp_path, stage=["ppo"])
    assert again.returncode == 0 and "ppo: done before, skipped" in again.stdout + again.stderr
    wrong = start(tmp_path, "ppo.algorithm=strangers.algorithm:rankt", stage=["ppo"])
    assert wrong.returncode == 2
    (line_,) = wrong.stderr.strip().splitlines()
    assert "ppo.algorithm=strangers.algorithm:rankt: the module strangers.algorithm has no rankt" in line_
