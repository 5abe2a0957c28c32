"""What the evaluation depends on, what it takes over from an earlier one, and what is refused before a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.data import DataConfig, RatingSource
from cai_dist.config.evaluate import EloConfig, EvaluateConfig, GateConfig
from cai_dist.config.feedback import EndpointConfig, FeedbackConfig
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.preference import PreferenceConfig
from cai_dist.config.run import RunConfig
from cai_dist.config.training import SamplingConfig
from cai_dist.data.chat import ChatFormat
from cai_dist.errors import DataError
from cai_dist.stages import evaluate, pipeline
from cai_dist.stages.ai_feedback import labelling
from cai_dist.stages.context import RunContext
from cai_dist.stages.evaluation import sampling as answers
from cai_dist.stages.evaluation.sampling import sample_answers
from cai_dist.stages.execution.reuse import reuse_from
from cai_dist.stages.summaries import StageSummary
from cai_dist.tracking.console import Console
from cai_dist.types import Generation, Prompt, Turn
from cai_dist.world.tokenizer import build_tokenizer
from tests.unit.stages.conftest import FakeGroup


def of(**sections: Any) -> dict[str, Any]:
    return evaluate.settings(RunConfig(name="t", **sections))


def test_the_settings_of_the_feedback_model_are_among_those_of_its_judgements() -> None:
    for changed in (
        FeedbackConfig(temperature=2.0),
        FeedbackConfig(orders="one"),
        FeedbackConfig(principles=4),
        FeedbackConfig(endpoint=EndpointConfig(url="http://127.0.0.1:1/v1", model="m")),
    ):
        assert of(feedback=changed) != of()
    config = RunConfig(name="t")
    assert labelling.settings(config).items() <= of().items()
    assert of(evaluate=EvaluateConfig(elo=EloConfig(prompts=3))) != of()
    assert of(data=DataConfig(harm_ratings=RatingSource(source="world"))) != of()
    # The gate is looked at anew each time, and how many work at it changes nothing.
    assert of(evaluate=EvaluateConfig(gate=GateConfig(boilerplate=0.5), workers=7)) == of()


def test_the_inputs_are_all_that_is_read(make_run: Callable[..., RunContext], tmp_path: Path) -> None:
    for name in ("r.jsonl", "q.jsonl"):
        (tmp_path / name).touch()
    run = make_run(
        ppo=PpoConfig(snapshot_every=5, iterations=12), preference=PreferenceConfig(halves=True),
        data=DataConfig(harm_ratings=RatingSource(source=str(tmp_path / "r.jsonl"))),
        evaluate=EvaluateConfig(multiple_choice=("world", str(tmp_path / "q.jsonl"))),
    )  # fmt: skip
    found = set(evaluate.inputs(run))
    assert set(labelling.inputs(run)) <= found
    inside = ("ppo/snapshots/iteration-00005", "ppo/snapshots/iteration-00010", "preference/second/model")
    assert {run.run_dir / name for name in inside} <= found
    assert {tmp_path / "r.jsonl", tmp_path / "q.jsonl"} <= found and Path("world") not in found
    human = run.run_dir / "prepare" / "human.parquet"
    plain = set(evaluate.inputs(make_run()))
    assert plain < found and len(found - plain) == 6 and human in found - plain


def test_ratings_follow_the_comparisons_that_are_held_out(make_run: Callable[..., RunContext]) -> None:
    """Which ratings are learned from depends on them: other comparisons, another evaluation."""
    run = make_run(data=DataConfig(harm_ratings=RatingSource(source="world")))
    for path in evaluate.inputs(run):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    stage = pipeline.STAGE_SPECS["evaluate"]
    before = pipeline._fingerprint(run, stage)
    (run.run_dir / "prepare" / "human.parquet").write_text("2")
    assert pipeline._fingerprint(run, stage)[0] != before[0]


def test_another_bound_needs_no_new_evaluation(make_run: Callable[..., RunContext]) -> None:
    measured = {"rl": {"boilerplate": {"value": 0.4}}}
    run = make_run(evaluate=EvaluateConfig(gate=GateConfig(boilerplate=0.3)))
    path = run.paths.evaluation
    path.write_text(json.dumps({"measures": measured, "elo": {"x": 1}}))
    evaluate._update_gate(run)
    first = json.loads(path.read_text())
    assert first["gate"]["passed"] is False and first["elo"] == {"x": 1}
    evaluate._update_gate(make_run(evaluate=EvaluateConfig(gate=GateConfig(boilerplate=0.5))))
    second = json.loads(path.read_text())
    assert second["gate"]["passed"] is True and second["measures"] == measured
    evaluate._update_gate(make_run())
    assert json.loads(path.read_text())["gate"] == {"model": "rl", "bounds": {}, "passed": None, "failures": []}


def test_malformed_files_are_refused_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions, others, ratings = (tmp_path / name for name in ("q.jsonl", "o.jsonl", "r.jsonl"))
    questions.write_text('{"input": "q", "target_scores": {"a": 1, "b": "no"}}\n')
    others.write_text('{"input": "q", "target_scores": {"a": 1, "b": 0}}\n')
    ratings.write_text('{"prompt": "q", "response": "a", "rating": 9}\n')
    monkeypatch.setattr(pipeline, "STAGE_SPECS", {})  # any stage that is begun fails
    config = RunConfig(
        name="t", runs_dir=str(tmp_path / "runs"), constitution="micro",
        data=DataConfig(harm_ratings=RatingSource(source=str(ratings))),
        evaluate=EvaluateConfig(multiple_choice=(str(questions), str(others))),
    )  # fmt: skip
    for start in (
        lambda: pipeline.run_pipeline(config, Console("quiet")),
        lambda: pipeline.run_stage(config, "revise", Console("quiet")),
    ):
        with pytest.raises(DataError) as error:
            start()
        first, second = str(error.value).splitlines()
        assert "q.jsonl:1" in first and "r.jsonl:1" in second
    assert not (tmp_path / "runs").exists()


PROMPTS = [Prompt(f"p{n}", (Turn("human", "make rope salt ?"),), "red_team", "heldout") for n in range(3)]


@pytest.fixture
def sample(make_run: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Sample answers of a model; returns how many requests that took."""
    chat = ChatFormat(build_tokenizer())
    monkeypatch.setattr(answers, "chat_format", lambda run, model: chat)
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("1")

    def asked(prompts: Any = PROMPTS, sampling: SamplingConfig | None = None, **sections: Any) -> int:
        run = make_run(**sections)
        answer = tuple(chat.prompt_ids((Turn("human", "no ."),))[:1])
        group = FakeGroup(lambda method, request: [Generation(p, answer, (), "stop", 0) for p in request.prompts])
        sampling = sampling or SamplingConfig(max_new_tokens=4)
        found = sample_answers(run, group, run.folder("evaluate"), "answers-base", str(model), prompts, sampling)  # type: ignore[arg-type]
        assert len(found) == len(prompts)
        return group.calls

    return asked


def aside(folder: Path) -> None:
    """As the pipeline does where the stage begins anew."""
    number = len(list(folder.parent.glob("evaluate.old-*"))) + 1
    folder.rename(folder.parent / f"evaluate.old-{number}")


def test_a_mended_file_costs_no_answer(sample: Callable[..., int], tmp_path: Path) -> None:
    folder = tmp_path / "t" / "evaluate"
    assert sample() == 1
    aside(folder)
    assert sample(evaluate=EvaluateConfig(multiple_choice=("world",))) == 0
    aside(folder)
    assert sample() == 0, "from the latest one, which took them over itself"
    aside(folder)
    assert sample(sampling=SamplingConfig(max_new_tokens=5)) == 1
    aside(folder)
    assert sample(prompts=PROMPTS[:2]) == 1
    aside(folder)
    assert sample(seed=7) == 1
    aside(folder)
    (tmp_path / "model" / "weights").write_text("2")
    assert sample() == 1, "another model"
    aside(folder)
    (tmp_path / "model" / "weights").write_text("1")
    assert sample() == 0, "further back, one was made from the same"


def test_the_pipeline_begins_anew_with_the_answers_of_the_stage_that_it_sets_aside(
    sample: Callable[..., int], make_run: Callable[..., RunContext]
) -> None:
    calls: list[int] = []

    def act(ctx: RunContext) -> list[Path]:
        calls.append(sample())
        ctx.paths.evaluation.write_text(str(len(calls)))
        return [ctx.paths.evaluation]

    run = make_run()
    for bound in (1, 2, 2):
        pipeline.run_one(
            run,
            replace(
                pipeline.STAGE_SPECS["evaluate"],
                execute=act,
                settings=lambda config, b=bound: {"b": b},
                inputs=lambda run: [],
                summary=lambda run: StageSummary(""),
            ),
        )
    assert calls == [1, 0], "asked once; begun anew without a question; then finished"
    old, new = run.run_dir / "evaluate.old-1", run.run_dir / "evaluate"
    shards = sorted(p.relative_to(old) for p in old.rglob("*.parquet"))
    assert shards and all((old / p).read_bytes() == (new / p).read_bytes() for p in shards)
    assert (old / "evaluation.json").read_text() == "1" and run.paths.evaluation.read_text() == "2"


def test_only_the_named_shards_are_taken_over(make_run: Callable[..., RunContext]) -> None:
    run = make_run()
    old = run.folder("evaluate")
    for name in ("elo", "elo-turned", "elopement", "answers-base"):
        (old / name).mkdir()
        (old / name / "00000.parquet").write_text(name)
    reuse_from(run, old, "elo", {"a": 1})
    aside(old)
    new = run.folder("evaluate")
    reuse_from(run, new, "elo", {"a": 1})
    assert sorted(p.name for p in new.iterdir() if p.is_dir()) == ["elo", "elo-turned"]
    assert (new / "elo-turned" / "00000.parquet").read_text() == "elo-turned"
    assert (run.run_dir / "evaluate.old-1" / "elo").is_dir(), "the earlier one stays whole"
    (run.run_dir / "evaluate.old-1" / "elo.made-from.json").write_text("[]")
    aside(new)
    (run.run_dir / "evaluate.old-2" / "elo.made-from.json").write_text("{")
    reuse_from(run, run.folder("evaluate"), "elo", {"a": 1})
    assert not (run.run_dir / "evaluate" / "elo").exists()


def test_prompts_without_room_are_counted_and_told(
    make_run: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = ChatFormat(build_tokenizer())
    monkeypatch.setattr(answers, "chat_format", lambda run, model: chat)
    run = make_run()
    told: list[str] = []
    monkeypatch.setattr(run.console, "warn", told.append)
    long = Prompt("long", (Turn("human", "make rope salt ? " * 400),), "red_team", "heldout")
    group = FakeGroup(lambda method, request: [Generation(p, p[:1], (), "stop", 0) for p in request.prompts])
    sampling = SamplingConfig(max_new_tokens=4)
    found = sample_answers(run, group, run.folder("evaluate"), "answers-sl", "hub/m", [*PROMPTS, long], sampling)  # type: ignore[arg-type]
    assert [s.prompt.id for s in found] == ["p0", "p1", "p2"]
    assert len(told) == 1 and told[0].startswith("answers-sl: 1 of 4 prompts leave no room")
    lines = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    [line] = [x for x in lines if x["stage"] == "evaluate_answers-sl"]
    assert (line["answers"], line["too_long"]) == (3, 1)
