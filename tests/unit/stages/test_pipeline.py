"""The order of stages: skip what is finished, run again what has changed, lose nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cai_dist.errors import Interrupted
from cai_dist.stages.pipeline import StageSpec, run_one
from cai_dist.tracking.manifest import read_manifest


@dataclass
class Recorder:
    """A stage that writes one file; counts how often it ran."""

    settings: dict = field(default_factory=lambda: {"x": 1})
    error: Exception | None = None
    runs: int = 0

    def stage(self, source: Path) -> StageSpec:
        def run(context):
            self.runs += 1
            target = context.folder("demo") / "out.txt"
            target.write_text(str(self.settings))
            if self.error:
                raise self.error
            return [target]

        return StageSpec("demo", run, lambda config: self.settings, lambda context: [source])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "t" / "in.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("input")
    return path


def test_a_finished_stage_is_skipped(make_run, source) -> None:
    run, recorder = make_run(), Recorder()
    run_one(run, recorder.stage(source))
    run_one(run, recorder.stage(source))
    assert recorder.runs == 1
    entry = read_manifest(run.run_dir)["stages"]["demo"]
    assert entry["status"] == "done"
    assert entry["outputs"] == ["demo/out.txt"]
    assert list(entry["inputs"]) == ["in.txt"]


@pytest.mark.parametrize("change", ["settings", "input", "output"])
def test_a_change_runs_it_again_and_keeps_the_old_result(make_run, source, change) -> None:
    run, recorder = make_run(), Recorder()
    run_one(run, recorder.stage(source))
    if change == "settings":
        recorder.settings = {"x": 2}
    elif change == "input":
        source.write_text("other input")
    else:
        (run.run_dir / "demo" / "out.txt").unlink()
    run_one(run, recorder.stage(source))
    assert recorder.runs == 2
    kept = run.run_dir / "demo.old-1" / "out.txt"
    assert kept.exists() == (change != "output")


def test_a_failure_is_in_the_manifest_and_an_interruption_is_not_a_failure(make_run, source) -> None:
    run = make_run()
    broken = Recorder(error=ValueError("no\nluck"))
    with pytest.raises(ValueError):
        run_one(run, broken.stage(source))
    entry = read_manifest(run.run_dir)["stages"]["demo"]
    assert (entry["status"], entry["error"]) == ("failed", "ValueError: no luck")
    with pytest.raises(Interrupted):
        run_one(run, Recorder(error=Interrupted("stop")).stage(source))
    assert read_manifest(run.run_dir)["stages"]["demo"]["status"] == "running"
    whole = Recorder()
    run_one(run, whole.stage(source))
    assert read_manifest(run.run_dir)["stages"]["demo"]["status"] == "done"


def test_an_interrupted_stage_finds_what_it_had_done(make_run, source) -> None:
    run, recorder = make_run(), Recorder(error=Interrupted("stop"))
    with pytest.raises(Interrupted):
        run_one(run, recorder.stage(source))
    (run.run_dir / "demo" / "shard.txt").write_text("done before")
    recorder.error = None
    run_one(run, recorder.stage(source))
    assert (run.run_dir / "demo" / "shard.txt").read_text() == "done before"
    assert not list(run.run_dir.glob("demo.old-*"))
