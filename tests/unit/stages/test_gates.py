"""What stages tell at their end, and the gates: a run whose labels or scores are no better than chance stops before the
next stage, and goes on with the same command once the gate lets it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.feedback import FeedbackConfig
from cai_dist.config.loading.load import load_run
from cai_dist.config.preference import PreferenceConfig
from cai_dist.errors import GateFailed
from cai_dist.stages import pipeline, summaries
from cai_dist.stages.context import RunContext
from cai_dist.stages.evaluation import gate
from cai_dist.stages.pipeline import StageSpec, check_gates, run_one
from cai_dist.stages.tables.records import Labelled, Revision, write_comparisons, write_revisions
from cai_dist.tracking.console import Console
from cai_dist.types import Comparison, Prompt, Turn

Make = Callable[..., RunContext]
ROOT = Path(__file__).parents[3]


def prompt(name: str) -> Prompt:
    return Prompt(name, (Turn("human", f"q {name}"),), "red_team")


def pair(name: str, first: float, second: float) -> Labelled:
    """Asked in both orders, with these two answers."""
    p = (first + second) / 2
    return Labelled(Comparison(prompt(name), "x", "y", p, "ai", "danger-1"), p, first, second)


READS = [pair(f"p{n}", 0.9, 0.8) if n % 2 else pair(f"p{n}", 0.2, 0.1) for n in range(20)]
PLACE = [pair(f"p{n}", 0.9, 0.15) for n in range(20)]
"""Whatever stands first is better."""
NOISE = [pair(f"p{n}", 0.6, 0.55 if n % 2 else 0.45) for n in range(20)]


def labels(ctx: RunContext, labelled: Sequence[Labelled]) -> RunContext:
    write_comparisons(ctx.folder("feedback") / "comparisons.parquet", labelled)
    return ctx


def scores(ctx: RunContext, **sources: Any) -> RunContext:
    (ctx.folder("preference") / "heldout.json").write_text(json.dumps({"sources": sources}))
    return ctx


def accuracy(value: float, low: float, high: float) -> dict[str, Any]:
    return {"n": 60, "prompts": 20, "accuracy": value, "low": low, "high": high, "ece": 0.03}


# feedback


@pytest.mark.parametrize("labelled", [PLACE, NOISE], ids=["place", "noise"])
def test_labels_that_do_not_come_from_the_answers_stop_the_run(make_run: Make, labelled: list[Labelled]) -> None:
    run = labels(make_run(), labelled)
    [line] = summaries.gate_feedback(run)
    assert line.startswith("feedback.gate=0.5: both orders prefer the same answer for 0.") and "20 prompts" in line
    assert "feedback.few_shot" in line and "feedback.gate=null" in line and "\n" not in line
    assert summaries.told_feedback(run).warnings == ()  # it is told once, as the error


def test_labels_of_a_model_that_reads_pass(make_run: Make) -> None:
    run = labels(make_run(), READS)
    assert summaries.gate_feedback(run) == []
    told = summaries.told_feedback(run)
    assert "both orders agree on 1.00 (0.84–1.00, 20 prompts), mean confidence 0.85" in told.line
    assert told.warnings == ()


def test_the_gate_of_labels_counts_prompts_not_pairs(make_run: Make) -> None:
    # Three prompts of four agree, as a coin may well do; eight copies of each pair are no more evidence.
    few = [pair(f"p{n}", 0.9, 0.8 if n else 0.2) for n in range(4)]
    for copies in (1, 8):
        run = labels(make_run(), [x for x in few for _ in range(copies)])
        [line] = summaries.gate_feedback(run)
        assert "0.75" in line and "so few prompts cannot tell from chance" in line


def test_a_lower_gate_and_none_let_it_go_on_with_a_warning(make_run: Make) -> None:
    found = [pair(f"p{n}", 0.9, 0.8 if n % 3 == 0 else 0.2) for n in range(60)]  # agreement 1/3
    for bound, stopped in ((0.5, True), (0.3, True), (0.2, False), (None, False)):
        run = labels(make_run(feedback=FeedbackConfig(gate=bound)), found)
        assert bool(summaries.gate_feedback(run)) is stopped
        warnings = summaries.told_feedback(run).warnings
        assert len(warnings) == (not stopped) and all("no better than chance" in w for w in warnings)


def test_one_order_has_no_agreement_to_judge(make_run: Make) -> None:
    once = [replace(x, p_second=float("nan")) for x in PLACE]
    run = labels(make_run(), once)
    assert summaries.gate_feedback(run) == [] and "one order asked" in summaries.told_feedback(run).line


def test_what_else_labels_are_warned_of(make_run: Make) -> None:
    run = labels(make_run(), READS)
    run.log("feedback", 0, pairs=40, equal_pairs=2, unparsed_pairs=0)
    run.log("feedback", 2, option_mass=0.3)
    told = summaries.told_feedback(run)
    assert told.line.startswith("labels for 20 of 40 pairs (2 equal left out before), option mass 0.30, ")
    assert ["have no label" in told.warnings[0], "0.30 of the probability" in told.warnings[1]] == [True, True]


# preference


@pytest.mark.parametrize(
    ("ai", "stopped"),
    [
        (accuracy(0.88, 0.8, 0.93), False),
        (accuracy(0.6, 0.48, 0.72), True),  # the interval holds chance
        (accuracy(0.17, 0.05, 0.4), True),  # worse than chance
        (None, True),  # nothing to measure it on
    ],
)
def test_scores_that_are_no_better_than_chance_stop_the_run(make_run: Make, ai: Any, stopped: bool) -> None:
    sources = {"ai": ai} if ai else {}
    run = scores(make_run(), **sources)
    lines = summaries.gate_preference(run)
    assert len(lines) == stopped
    assert all(line.startswith("preference.gate=0.5: held-out accuracy") for line in lines)
    off = scores(make_run(preference=PreferenceConfig(gate=None)), **sources)
    assert summaries.gate_preference(off) == []
    assert len(summaries.told_preference(off).warnings) == stopped


def test_the_line_of_scores_names_each_source_and_warns_of_people_s(make_run: Make) -> None:
    run = scores(make_run(), ai=accuracy(0.88, 0.8, 0.93), human=accuracy(0.52, 0.45, 0.6))
    told = summaries.told_preference(run)
    assert told.line == (
        "held-out accuracy on the AI's labels 0.88 (0.80–0.93, 20 prompts), ECE 0.03, "
        "on people's 0.52 (0.45–0.60, 20 prompts)"
    )
    [warning] = told.warnings
    assert "people's labels" in warning and "data.helpful_comparisons" in warning


# the pipeline


def recorded(name: str, ran: list[str], stops: list[str]) -> StageSpec:
    def work(ctx: RunContext) -> list[Path]:
        ran.append(name)
        target = ctx.folder(name) / "out"
        target.write_text("x")
        return [target]

    return StageSpec(
        name,
        work,
        lambda config: {},
        lambda run: [],
        lambda run: summaries.StageSummary(f"{name} went well", (f"{name} is odd",)),
        lambda run: stops,
    )


def test_a_gate_stops_before_the_next_stage_and_the_same_command_goes_on(
    make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, ran, stops = make_run(), [], ["feedback.gate=0.5: no"]
    for name in ("feedback", "preference"):
        monkeypatch.setitem(pipeline.STAGE_SPECS, name, recorded(name, ran, stops if name == "feedback" else []))

    def command() -> None:
        run_one(run, pipeline.STAGE_SPECS["feedback"])
        run_one(run, pipeline.STAGE_SPECS["preference"], ["feedback"])

    for _ in range(2):
        with pytest.raises(GateFailed, match=r"feedback\.gate=0\.5") as error:
            command()
        assert error.value.exit_code == 8
        assert ran == ["feedback"]  # its result stays, and nothing else has begun
        assert set(run.manifest._data["stages"]) == {"feedback"}
    stops.clear()
    command()
    assert ran == ["feedback", "preference"]
    # A run that is done is not stopped afterwards: there is nothing left to keep it from.
    stops.append("feedback.gate=0.9: no")
    command()
    with pytest.raises(GateFailed):
        check_gates(run, ["feedback"])


def test_a_stage_tells_one_line_and_its_warnings(make_run: Make) -> None:
    run, out = make_run(), io.StringIO()
    run.console = Console("plain", out)
    run_one(run, recorded("sft", [], []))
    assert out.getvalue().splitlines()[-2:] == ["sft: sft went well", "warning: sft: sft is odd"]


def test_gates_are_those_of_the_two_stages_that_may_be_noise() -> None:
    for name, spec in pipeline.STAGE_SPECS.items():
        assert spec.summary is getattr(summaries, f"told_{name}")
        assert spec.gate is getattr(summaries, f"gate_{name}", StageSpec.gate)
    assert {name for name, spec in pipeline.STAGE_SPECS.items() if spec.gate is not StageSpec.gate} == {
        "feedback",
        "preference",
    }
    assert gate.CHANCE == FeedbackConfig().gate == PreferenceConfig().gate


@pytest.mark.parametrize(
    ("file", "on"),
    [("demo", True), ("demo-inverted", True), ("demo-dpo", True), ("demo-no-critique", False), ("smollm2", False)],
)
def test_run_files_have_gates_but_where_chance_is_the_point(
    file: str, on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAI_DIST_DATA", "/nowhere")
    config = load_run(ROOT / "launch" / "runs" / f"{file}.yaml")
    assert [config.feedback.gate, config.preference.gate] == [0.5 if on else None] * 2


# the other stages


def course(ctx: RunContext, stage: str, name: str, values: Sequence[float], **numbers: float) -> None:
    for step, value in enumerate(values, start=1):
        ctx.log(stage, step, **{name: value}, **numbers)


def test_revise_tells_what_is_usable_and_what_changed(make_run: Make) -> None:
    run, folder = make_run(), make_run().folder("revise")
    rows = []
    for n in range(10):
        rows += [
            Revision(prompt(f"p{n}"), 0, "", "", "a", ""),
            Revision(prompt(f"p{n}"), 1, "danger-1", "c", "b" if n < 6 else "a", ""),
        ]
    write_revisions(folder / "revisions.parquet", rows)
    write_revisions(folder / "helpful.parquet", [])
    told = summaries.told_revise(run)
    assert told.line == (
        "10 prompts in rounds 0 to 1 and 0 helpful answers, 100% of the texts usable, 60% of the first revisions "
        "change the answer"
    )
    assert told.warnings == ()
    copied = [replace(r, response="a", failure="runaway" if int(r.prompt.id[1:]) < 5 else "") for r in rows]
    write_revisions(folder / "revisions.parquet", copied)
    unusable, unchanged = summaries.told_revise(run).warnings
    assert "runaway 10" in unusable and "revise.few_shot" in unchanged


def test_trained_stages_tell_where_the_loss_went(make_run: Make) -> None:
    run = make_run()
    run.log("sft_data", 0, examples=30, too_long=70)
    course(run, "sft", "loss", [1.0] * 20)
    told = summaries.told_sft(run)
    assert told.line == "30 examples (70 too long left out), 20 steps, loss 1 -> 1"
    assert ["models.context" in told.warnings[0], "sft.train" in told.warnings[1]] == [True, True]


def test_ppo_tells_where_the_score_went(make_run: Make) -> None:
    run = make_run()
    course(run, "ppo", "score", [0.1 * n for n in range(20)], kl_per_response=2.5)
    told = summaries.told_ppo(run)
    assert told.line == "20 iterations, score 0.05 -> 1.85, KL 2.5 nats a response" and told.warnings == ()
    run.tracker.rewind("ppo", 0)
    course(run, "ppo", "score", [0.5] * 20, kl_per_response=2.5)
    assert "ppo.kl.coefficient" in summaries.told_ppo(run).warnings[0]
