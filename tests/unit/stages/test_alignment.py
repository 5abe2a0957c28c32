"""Which stages a run has, and what a folder does that has seen both kinds of run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cai_dist.config.run import RunConfig, TrackingConfig
from cai_dist.config.stages import STAGES
from cai_dist.errors import ConfigError
from cai_dist.stages import evaluate, pipeline
from cai_dist.tracking.console import Console
from cai_dist.tracking.manifest import read_manifest

WRITES = {
    "prepare": ("models.json", "red_team.parquet", "helpful.parquet", "human.parquet"),
    "expand": ("red_team.parquet",),
    "revise": ("revisions.parquet", "helpful.parquet"),
    "sft": ("model",),
    "feedback": ("comparisons.parquet",),
    "preference": ("model", "heldout.json"),
    "ppo": ("model",),
    "dpo": ("model", "heldout.json"),
    "evaluate": ("out.json",),
}
PPO = ["prepare", "revise", "sft", "feedback", "preference", "ppo", "evaluate"]
DPO = ["prepare", "revise", "sft", "feedback", "dpo", "evaluate"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the stages that ran: each has its real settings and inputs, and writes its name into its files."""
    names: list[str] = []

    def made(name: str, stage: pipeline.StageSpec) -> pipeline.StageSpec:
        def run(context):
            names.append(name)
            paths = [context.folder(name) / output for output in WRITES[name]]
            for path in paths:
                path.write_text(name)
            return paths

        return pipeline.StageSpec(name, run, stage.settings, stage.inputs, beside=stage.beside)

    monkeypatch.setattr(
        pipeline, "STAGE_SPECS", {name: made(name, stage) for name, stage in pipeline.STAGE_SPECS.items()}
    )
    monkeypatch.setattr(evaluate, "show", lambda run: None)
    return names


def config(tmp_path: Path, alignment: str, **sections) -> RunConfig:
    return RunConfig(
        name="t", runs_dir=str(tmp_path), constitution="micro", alignment=alignment,
        tracking=TrackingConfig(wandb="off"), **sections,
    )  # fmt: skip


def test_the_order_of_the_stages_follows_from_the_alignment(tmp_path, ran) -> None:
    assert ["prepare", *config(tmp_path, "ppo").stages] == PPO
    assert ["prepare", *config(tmp_path, "dpo").stages] == DPO
    assert set(STAGES) | {"prepare"} == set(pipeline.STAGE_SPECS) == set(WRITES) and STAGES[-1] == "evaluate"
    pipeline.run_pipeline(config(tmp_path, "dpo"), Console("quiet"))
    assert ran == DPO
    assert list(read_manifest(tmp_path / "t")["stages"]) == DPO


def test_a_folder_with_both_keeps_them_apart(tmp_path, ran) -> None:
    def again(alignment: str) -> list[str]:
        ran.clear()
        pipeline.run_pipeline(config(tmp_path, alignment), Console("quiet"))
        return list(ran)

    assert again("ppo") == PPO
    assert again("dpo") == ["dpo", "evaluate"]
    judged = read_manifest(tmp_path / "t")["stages"]["evaluate"]["inputs"]
    assert {"dpo/model", "dpo/heldout.json", "sft/model"} <= set(judged)
    assert not any(path.startswith(("ppo/", "preference/")) for path in judged)
    assert again("dpo") == []
    assert again("ppo") == ["evaluate"]
    judged = read_manifest(tmp_path / "t")["stages"]["evaluate"]["inputs"]
    assert {"ppo/model", "preference/model", "preference/heldout.json"} <= set(judged)
    assert not any(path.startswith("dpo/") for path in judged)


def test_no_evaluation_is_lost_between_the_two(tmp_path, ran) -> None:
    def figures(folder: Path) -> str:
        return (folder / "evaluation.json").read_text()

    folder = tmp_path / "t"
    for number, alignment in enumerate(("ppo", "dpo", "ppo")):
        pipeline.run_pipeline(config(tmp_path, alignment), Console("quiet"))
        assert not (folder / "evaluation.json").exists() or number == 0, "it went with the stage's earlier folder"
        (folder / "evaluation.json").write_text(f"{number}: {alignment}")
    assert figures(folder) == "2: ppo"
    assert [figures(folder / f"evaluate.old-{n}") for n in (1, 2)] == ["0: ppo", "1: dpo"]
    assert (folder / "evaluate.old-2" / "out.json").exists()


def test_the_third_model_is_that_of_the_alignment(make_run) -> None:
    for alignment, key in (("ppo", "rl"), ("dpo", "dpo")):
        run = make_run(alignment=alignment)
        run.folder("prepare")
        (run.run_dir / "prepare" / "models.json").write_text(json.dumps({"assistant": {"path": "/base"}}))
        models = evaluate.models(run)
        assert list(models) == ["base", "sl", key]
        assert models[key] == str(run.run_dir / alignment / "model")


def test_what_dpo_depends_on(make_run) -> None:
    run = make_run(alignment="dpo")
    names = {str(p.relative_to(run.run_dir)) for p in pipeline.STAGE_SPECS["dpo"].inputs(run)}
    assert names == {"feedback/comparisons.parquet", "prepare/human.parquet", "sft/model"}
    changed = (
        {"beta": 0.3}, {"loss": "ipo"}, {"helpful_fraction": 0.1}, {"train": {"epochs": 2}},
        {"train": {"optimizer": {"lr": 1.0}}},
    )  # fmt: skip
    base = {"name": "t", "alignment": "dpo"}
    settings = [
        pipeline.STAGE_SPECS["dpo"].settings(RunConfig.model_validate_json(json.dumps({**base, "dpo": section})))
        for section in ({}, *changed)
    ]
    assert all(one != other for i, one in enumerate(settings) for other in settings[:i])
    same = RunConfig.model_validate_json(json.dumps({**base, "dpo": {"train": {"checkpoint_every": 3}}}))
    assert pipeline.STAGE_SPECS["dpo"].settings(same) == settings[0]


def test_a_stage_of_the_other_alignment_is_refused(tmp_path, ran) -> None:
    for alignment, name in (("dpo", "ppo"), ("dpo", "preference"), ("ppo", "dpo")):
        with pytest.raises(ConfigError, match=f"alignment={alignment}: stage {name} is no part of this run"):
            pipeline.run_stage(config(tmp_path, alignment), name, Console("quiet"))
    with pytest.raises(ConfigError, match=r"^expand\.prompts=0: .* set expand\.prompts \(or helpful\) above 0$"):
        pipeline.run_stage(config(tmp_path, "ppo"), "expand", Console("quiet"))
    assert ran == []


def test_evaluate_alone_waits_for_its_own_model(tmp_path, ran) -> None:
    pipeline.run_pipeline(config(tmp_path, "ppo"), Console("quiet"))
    with pytest.raises(ConfigError, match="needs the result of stage dpo"):
        pipeline.run_stage(config(tmp_path, "dpo"), "evaluate", Console("quiet"))
