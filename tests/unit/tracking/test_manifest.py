"""The manifest is always whole, in the fixed format, and never calls a stage finished that is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai_dist.errors import DataError
from cai_dist.tracking.lock import RunLock
from cai_dist.tracking.manifest import Manifest, Standing, read_manifest, standings


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    folder.mkdir()
    return folder


def test_the_format_of_a_finished_stage(run_dir, tmp_path):
    outside = tmp_path / "prompts.jsonl"
    outside.write_text("abc")
    (run_dir / "sft").mkdir()
    (run_dir / "sft" / "model").write_text("x")
    manifest = Manifest(run_dir)
    manifest.set_constitution("c" * 64)
    inputs = manifest.hashes([outside, run_dir / "sft" / "model"])
    assert list(inputs) == [str(outside), "sft/model"]
    manifest.begin("sft", "f1", inputs)
    manifest.done("sft", [run_dir / "sft" / "model"], 1.23456)
    data = json.loads((run_dir / "manifest.json").read_text())
    assert data["constitution"] == "c" * 64
    assert data["name"] == "demo"
    assert "python" in data["versions"] and "torch" in data["versions"]
    entry = data["stages"]["sft"]
    assert (entry["status"], entry["seconds"], entry["outputs"]) == ("done", 1.235, ["sft/model"])
    assert entry["inputs"] == inputs and entry["fingerprint"] == "f1"


def test_paths_given_relative_to_the_run_folder_or_to_the_current_one(run_dir, monkeypatch):
    monkeypatch.chdir(run_dir.parent)
    manifest = Manifest(Path("demo"))
    assert manifest.shown("sft/model") == "sft/model"
    assert manifest.shown("demo/sft/model") == "sft/model"
    assert manifest.shown(run_dir / "sft") == "sft"
    assert manifest.shown("data/x.jsonl") == "data/x.jsonl"


def test_done_needs_the_status_the_fingerprint_and_the_outputs(run_dir):
    manifest = Manifest(run_dir)
    assert not manifest.is_done("sft", "f1") and manifest.fingerprint("sft") is None
    manifest.begin("sft", "f1", {})
    assert not manifest.is_done("sft", "f1")
    (run_dir / "out").write_text("x")
    manifest.done("sft", [run_dir / "out"], 1.0)
    assert Manifest(run_dir).is_done("sft", "f1")
    assert not manifest.is_done("sft", "f2")
    (run_dir / "out").unlink()
    assert not manifest.is_done("sft", "f1")


def test_a_failure_is_one_line_and_a_new_start_clears_it(run_dir):
    manifest = Manifest(run_dir)
    manifest.begin("ppo", "f", {})
    manifest.failed("ppo", "a\nb\n" + "c" * 1000)
    entry = read_manifest(run_dir)["stages"]["ppo"]
    assert entry["status"] == "failed" and entry["error"].startswith("a b ccc") and len(entry["error"]) == 500
    again = Manifest(run_dir)
    again.begin("ppo", "f", {})
    assert "error" not in read_manifest(run_dir)["stages"]["ppo"]


def test_environment_does_not_leak(run_dir, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "very-secret-value")
    Manifest(run_dir).set_constitution("c")
    assert "very-secret-value" not in (run_dir / "manifest.json").read_text()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stages": []}', '{"stages": {"sft": {"status": "done"}}}'])
def test_a_malformed_manifest_is_one_line(run_dir, text):
    (run_dir / "manifest.json").write_text(text)
    with pytest.raises(DataError) as caught:
        Manifest(run_dir)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(DataError, match="no such file"):
        read_manifest(run_dir.parent)


def states(run_dir: Path) -> dict[str, str]:
    return {name: one.state for name, one in standings(run_dir, read_manifest(run_dir)).items()}


def test_a_stage_runs_only_while_somebody_works_in_the_folder(run_dir):
    manifest = Manifest(run_dir)
    manifest.begin("ppo", "f", {})
    with RunLock(run_dir):
        assert states(run_dir) == {"ppo": "running"}
    assert states(run_dir) == {"ppo": "interrupted"}
    manifest.begin("sft", "f", {})
    with RunLock(run_dir):
        assert states(run_dir) == {"ppo": "interrupted", "sft": "running"}, "one stage runs at a time"
    manifest.failed("sft", "boom")
    assert standings(run_dir, read_manifest(run_dir))["sft"] == Standing("failed", "boom")


def test_a_stage_is_not_done_where_its_result_is_gone(run_dir):
    manifest = Manifest(run_dir)
    manifest.begin("sft", "f", {})
    (run_dir / "sft" / "model").mkdir(parents=True)
    (run_dir / "sft" / "data").touch()
    manifest.done("sft", [run_dir / "sft" / "model", run_dir / "sft" / "data"], 1.0)
    assert standings(run_dir, read_manifest(run_dir)) == {"sft": Standing("done")}
    (run_dir / "sft" / "model").rmdir()
    found = standings(run_dir, read_manifest(run_dir))["sft"]
    assert found.state == "missing" and found.why.startswith("sft/model: not there"), "and it says which"
