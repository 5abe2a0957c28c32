"""Runs from Python do what the command line does: checks first, then the stages, the report and the gates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cai_dist import ConfigError, RunConfig, load_run, report, run_pipeline, run_stage
from cai_dist.errors import GateFailed
from cai_dist.stages import pipeline as pipeline_module
from cai_dist.stages.evaluation import gate

FILE = Path(__file__).parents[3] / "launch" / "runs" / "demo.yaml"


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_run(FILE, ["name=t", f"runs_dir={tmp_path}", "tracking.console=quiet"])


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked of the pipeline and of the report, in order; the pipeline itself does nothing."""
    calls: list[Any] = []

    def pipeline(config: RunConfig, *_: Any) -> Path:
        calls.append("pipeline")
        return Path(config.runs_dir) / config.name

    def stage(config: RunConfig, name: str, *_: Any) -> Path:
        calls.append(name)
        return Path(config.runs_dir) / config.name

    monkeypatch.setattr(pipeline_module, "run_pipeline", pipeline)
    monkeypatch.setattr(pipeline_module, "run_stage", stage)
    monkeypatch.setattr(report, "write_report", lambda folder, stages: calls.append(("report", folder.name)))
    monkeypatch.setattr(gate, "enforce_gate", lambda result: calls.append(("gate", result.name)))
    return calls


def test_a_run_ends_with_its_report_and_its_gate(config: RunConfig, done: list[Any], tmp_path: Path) -> None:
    assert run_pipeline(config) == tmp_path / "t"
    assert done == ["pipeline", ("report", "t"), ("gate", "evaluation.json")]
    done.clear()
    assert run_stage(config, "revise") == tmp_path / "t"
    assert done == ["revise", ("report", "t")]
    done.clear()
    run_stage(config, "evaluate")
    assert done[-1] == ("gate", "evaluation.json")


def test_nothing_starts_with_a_mistake_in_the_settings(config: RunConfig, done: list[Any]) -> None:
    wrong = config.model_copy(update={"without_principles": ("danger-99",)})
    with pytest.raises(ConfigError, match="without_principles=danger-99"):
        run_pipeline(wrong)
    assert done == []


def test_the_report_of_a_run_that_a_gate_stops_is_written(
    config: RunConfig, done: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> Path:
        raise GateFailed("labels are noise")

    monkeypatch.setattr(pipeline_module, "run_pipeline", stopped)
    with pytest.raises(GateFailed):
        run_pipeline(config)
    assert done == [("report", "t")]
