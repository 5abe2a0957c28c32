"""metrics.jsonl is valid JSON line by line, whatever is logged and however a run ends."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from cai_dist.config.run import TrackingConfig
from cai_dist.tracking.metrics import Tracker, read_metrics, repair
from cai_dist.tracking.wandb_sink import wandb_mode

OFF = TrackingConfig(wandb="off")


def strict(text: str) -> dict:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_lines_hold_stage_step_time_and_numbers(tmp_path):
    tracker = Tracker(tmp_path, OFF, {})
    tracker.log("sft", 1, loss=0.5, tokens=12, scale=np.float32(2.0), done=True)
    tracker.close()
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = strict(line)
    assert isinstance(found.pop("time"), float)
    assert found == {"stage": "sft", "step": 1, "loss": 0.5, "tokens": 12, "scale": 2.0, "done": 1}


def test_numbers_that_json_lacks_become_null_and_are_named(tmp_path):
    tracker = Tracker(tmp_path, OFF, {})
    tracker.log("ppo", 3, a=math.nan, b=math.inf, c=np.float32(-math.inf), d=0.0)
    found = strict((tmp_path / "metrics.jsonl").read_text())
    assert (found["a"], found["b"], found["c"], found["d"]) == (None, None, None, 0.0)
    assert found["nonfinite"] == ["a", "b", "c"]
    tracker.close()


def test_reserved_names_and_other_types_are_refused(tmp_path):
    tracker = Tracker(tmp_path, OFF, {})
    with pytest.raises(ValueError, match="time"):
        tracker.log("sft", 1, time=3.0)
    for value in ("3", None, [1, 2], np.zeros(2)):
        with pytest.raises(TypeError, match="loss"):
            tracker.log("sft", 1, loss=value)  # type: ignore[arg-type]
    tracker.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_rewind_drops_later_lines_of_that_stage_alone_and_goes_on(tmp_path):
    tracker = Tracker(tmp_path, OFF, {})
    for step in (1, 2, 3):
        tracker.log("sft", step, loss=float(step))
        tracker.log("ppo", step, score=float(step))
    tracker.rewind("sft", 1)
    tracker.log("sft", 2, loss=20.0)
    tracker.close()
    lines = read_metrics(tmp_path)
    assert [(line["step"], line["loss"]) for line in lines if line["stage"] == "sft"] == [(1, 1.0), (2, 20.0)]
    assert [line["step"] for line in lines if line["stage"] == "ppo"] == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_torn_last_line_is_mended_at_every_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = b'{"stage": "sft", "step": 1, "time": 1.0}\n{"stage": "sft", "step": 2, "time": 2.0}\n'
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        tracker = Tracker(tmp_path, OFF, {})
        tracker.log("sft", 9)
        tracker.close()
        steps = [strict(line)["step"] for line in path.read_text().splitlines()]
        # A line counts once its closing brace is there, with or without the end of line.
        assert steps == [*(step for step, end in zip((1, 2), ends, strict=True) if cut >= end - 1), 9], cut


def test_repair_leaves_whole_files_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    repair(path)
    assert not path.exists()
    path.write_bytes(b'{"stage": "a", "step": 1}\n')
    before = path.stat().st_ino
    repair(path)
    assert path.stat().st_ino == before


@pytest.mark.parametrize(
    ("wish", "environment", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "off"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
        ("off", {"WANDB_API_KEY": "k"}, "off"),
        ("online", {}, "online"),
    ],
)
def test_what_auto_means(monkeypatch, wish, environment, mode):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(TrackingConfig(wandb=wish)) == mode


class FakeRun:
    def __init__(self, fail_at: int = -1) -> None:
        self.lines: list[dict] = []
        self.axes: list[tuple] = []
        self.finished = False
        self.fail_at = fail_at

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes.append((name, step_metric))

    def log(self, line: dict) -> None:
        if len(self.lines) == self.fail_at:
            raise RuntimeError("connection lost")
        self.lines.append(line)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def fake_wandb(monkeypatch):
    """A module `wandb` without a network; `.calls` holds what init was given."""
    module = types.ModuleType("wandb")
    module.calls, module.run = [], FakeRun()  # type: ignore[attr-defined]
    module.Settings = lambda **given: given  # type: ignore[attr-defined]

    def init(**given):
        module.calls.append(given)  # type: ignore[attr-defined]
        return module.run  # type: ignore[attr-defined]

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


OFFLINE = TrackingConfig(wandb="offline", project="p")


def test_wandb_lies_in_the_run_folder_and_keeps_its_id(tmp_path, fake_wandb):
    for _ in range(2):
        Tracker(tmp_path, OFFLINE, {"name": "n", "seed": 1}).close()
    first, second = fake_wandb.calls
    assert first["dir"] == str(tmp_path) and first["mode"] == "offline" and first["project"] == "p"
    assert first["name"] == "n" and first["config"]["seed"] == 1
    assert first["id"] == second["id"] == (tmp_path / "wandb" / "run-id").read_text().strip()
    assert fake_wandb.run.finished


def test_wandb_gets_names_by_stage_and_finite_numbers_alone(tmp_path, fake_wandb):
    tracker = Tracker(tmp_path, OFFLINE, {})
    tracker.log("sft", 1, loss=0.5, bad=math.nan)
    tracker.log("sft", 2, loss=0.4)
    tracker.close()
    assert fake_wandb.run.lines == [{"sft/loss": 0.5, "sft/step": 1}, {"sft/loss": 0.4, "sft/step": 2}]
    assert fake_wandb.run.axes == [("sft/step", None), ("sft/*", "sft/step")]


def test_a_failure_of_wandb_is_one_warning_and_metrics_go_on(tmp_path, fake_wandb):
    fake_wandb.run.fail_at = 1
    warnings: list[str] = []
    tracker = Tracker(tmp_path, OFFLINE, {}, warnings.append)
    for step in range(4):
        tracker.log("sft", step, loss=1.0)
    tracker.close()
    assert len(read_metrics(tmp_path)) == 4
    assert len(warnings) == 1 and "connection lost" in warnings[0] and "\n" not in warnings[0]


def test_a_wandb_that_does_not_start_is_one_warning(tmp_path, fake_wandb):
    def init(**given):
        raise OSError("no\nroute")

    fake_wandb.init = init
    warnings: list[str] = []
    tracker = Tracker(tmp_path, OFFLINE, {}, warnings.append)
    tracker.log("sft", 1)
    tracker.close()
    assert warnings == ["wandb is out of use from here on (OSError: no route); metrics.jsonl goes on"]


def test_off_does_not_import_wandb(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
    warnings: list[str] = []
    Tracker(tmp_path, OFF, {}, warnings.append).close()
    assert warnings == []
