"""What a run leaves behind says under which constitution it was made."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cai_dist.config.run import RunConfig, TrackingConfig
from cai_dist.constitution import load_constitution
from cai_dist.errors import ConfigError
from cai_dist.report import write_report
from cai_dist.stages import evaluate, pipeline
from cai_dist.stages.execution.worker_groups import export_model
from cai_dist.stages.tables.records import (
    Labelled,
    Revision,
    read_comparisons,
    read_revisions,
    write_comparisons,
    write_revisions,
)
from cai_dist.tracking.console import Console
from cai_dist.tracking.manifest import constitution_of, read_manifest
from cai_dist.types import Comparison, Prompt, Turn

STAGES = Path(pipeline.__file__).parent
MICRO = load_constitution("micro")
LEFT = MICRO.without(["rude-1"])
PROMPT = Prompt("p", (Turn("human", "hello"),), "red_team")


def noted(path: Path) -> dict:
    return json.loads(pq.read_schema(path).metadata[b"constitution"])


def test_tables_carry_it_in_their_metadata_and_read_as_before(tmp_path: Path) -> None:
    note = LEFT.note(["rude-1"])
    revisions = [Revision(PROMPT, 1, "danger-1", "c", "r", "")]
    write_revisions(tmp_path / "r.parquet", revisions, note)
    labelled = [Labelled(Comparison(PROMPT, "a", "b", 0.7, "ai", "danger-1"), 0.7, 0.6, 0.8)]
    write_comparisons(tmp_path / "c.parquet", labelled, note)
    assert noted(tmp_path / "r.parquet") == noted(tmp_path / "c.parquet") == note
    assert note == {"name": "micro", "version": "1", "sha256": LEFT.sha256, "without": ["rude-1"]}
    assert read_revisions(tmp_path / "r.parquet") == revisions
    assert read_comparisons(tmp_path / "c.parquet") == labelled


def test_models_and_figures_carry_it(make_run, tmp_path: Path) -> None:
    run = make_run(without_principles=("rude-1",))
    run.constitution = LEFT
    export_model(lambda folder: (folder / "config.json").write_text("{}"), tmp_path / "model", run.constitution_note)
    assert json.loads((tmp_path / "model" / "constitution.json").read_text()) == LEFT.note(["rude-1"])
    run.write_result(tmp_path / "heldout.json", {"accuracy": 0.5})
    assert json.loads((tmp_path / "heldout.json").read_text()) == {
        "accuracy": 0.5, "constitution": LEFT.note(["rude-1"])}  # fmt: skip


def test_the_world_s_own_model_belongs_to_no_run(tmp_path: Path) -> None:
    export_model(lambda folder: (folder / "config.json").write_text("{}"), tmp_path / "model")
    assert not (tmp_path / "model" / "constitution.json").exists()


@pytest.mark.parametrize("path", sorted(STAGES.glob("*.py")), ids=lambda path: path.stem)
def test_no_stage_forgets_it(path: Path) -> None:
    if path.stem in ("prepare", "records", "groups"):
        return  # what is made before any principle is asked, and the writers themselves
    source = path.read_text(encoding="utf-8")
    for call in re.finditer(r"\b(?:export_model|write_revisions|write_comparisons|write_expanded)\(", source):
        inside, depth = call.end(), 1
        while depth:
            depth += {"(": 1, ")": -1}.get(source[inside], 0)
            inside += 1
        assert "constitution_note" in source[call.start() : inside], source[call.start() : inside]
    assert not re.search(r"\bwrite_json\([^\n]*(?:heldout\.json|RESULT)", source), "figures go through run.write_result"


def test_a_principle_less_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way from the setting: other hash, every stage again, and the manifest and the page say why."""
    ran: list[tuple[str, str]] = []

    def made(name: str, stage: pipeline.StageSpec) -> pipeline.StageSpec:
        def run(context):
            ran.append((name, context.constitution_note["sha256"]))
            context.folder(name)
            return []

        return pipeline.StageSpec(name, run, lambda config: {}, lambda context: [])

    monkeypatch.setattr(
        pipeline, "STAGE_SPECS", {name: made(name, stage) for name, stage in pipeline.STAGE_SPECS.items()}
    )
    monkeypatch.setattr(evaluate, "show", lambda run: None)

    def start(*without: str) -> list[tuple[str, str]]:
        ran.clear()
        config = RunConfig(
            name="t", runs_dir=str(tmp_path), constitution="micro", without_principles=without,
            tracking=TrackingConfig(wandb="off"),
        )  # fmt: skip
        pipeline.run_pipeline(config, Console("quiet"))
        return list(ran)

    whole = start()
    assert whole and {sha for _, sha in whole} == {MICRO.sha256}
    assert start() == []
    assert start("rude-1") == [(name, LEFT.sha256) for name, _ in whole]
    assert constitution_of(read_manifest(tmp_path / "t")) == ("micro, version 1, without rude-1", LEFT.sha256)
    page = write_report(tmp_path / "t", ()).read_text()
    assert "micro, version 1, without rude-1" in page and LEFT.sha256 in page
    with pytest.raises(ConfigError, match="did you mean rude-1"):
        start("rude1")
