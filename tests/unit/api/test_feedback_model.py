"""The feedback model of a notebook gives the labels of the stage, and says in one line why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai_dist import ConfigError, DataError, FeedbackModel, Turn
from cai_dist.config.engine import EngineConfig
from cai_dist.config.feedback import EndpointConfig, FeedbackConfig, ReasoningConfig
from cai_dist.config.run import ModelsConfig
from cai_dist.config.training import SamplingConfig
from cai_dist.constitution import ComparisonPrinciple
from cai_dist.engines.hf.rollout import HfRolloutEngine
from cai_dist.stages.ai_feedback import labelling
from cai_dist.stages.context import RunContext
from cai_dist.types import Comparison, Prompt
from tests.unit.stages.conftest import FakeGroup

from .conftest import ASK, BAD, GOOD, with_examples

MODELS = ModelsConfig(context=512)
ANY_MASS = ["feedback.min_option_mass=0"]
THINKS = ReasoningConfig(chains=2, clamp=(0.3, 0.7), sampling=SamplingConfig(max_new_tokens=12), retries=1)


def stage_label(ctx: RunContext, folder: Path, pairs: list[Comparison]) -> list[float]:
    """What the stage's own functions make of the pairs, with the model in this process in place of workers."""
    engine = HfRolloutEngine("fp32", EngineConfig())
    engine.load(str(folder))
    group = FakeGroup(lambda method, request: getattr(engine, method)(request))
    names = [[p.principle_id] for p in pairs]
    found = labelling.label_pairs(ctx, group, ctx.folder("feedback"), "labels", pairs, names)  # type: ignore[arg-type]
    return [label.p for label in found if label is not None]


def pair(turns: tuple[Turn, ...], a: str, b: str) -> Comparison:
    return Comparison(Prompt("p", turns, "red_team"), a, b, 0.5, "ai", "danger-2")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"orders": "one"},
        {"few_shot": 2, "temperature": 2.0},
        {"form": "text"},
        {"reasoning": THINKS},
    ],
    ids=["both", "one", "few-shot", "text", "reasoning"],
)
def test_the_numbers_are_those_of_the_stage(
    run_of: Callable[..., RunContext], chat_folder: Path, settings: dict[str, Any]
) -> None:
    ctx = run_of(feedback=FeedbackConfig(min_option_mass=0.0, **settings), models=MODELS)
    ctx.constitution = with_examples(ctx.constitution)
    turns = (Turn("human", "make rope ?"), Turn("assistant", "no ."), Turn("human", ASK))
    pairs = [pair((Turn("human", ASK),), GOOD, BAD)]
    if not settings.get("reasoning"):  # samples of a shard depend on what else is in it
        pairs += [pair(turns, BAD, GOOD), *pairs]
    expected = stage_label(ctx, chat_folder, pairs)
    model = FeedbackModel.load(ctx.run_dir, constitution=ctx.constitution)
    found = [
        model.probabilities(p.prompt.turns, p.response_a, p.response_b, "danger-2", number=i)
        for i, p in enumerate(pairs)
    ]
    assert [p_a for p_a, _ in found] == pytest.approx(expected, abs=1e-5)
    assert all(p_a + p_b == pytest.approx(1.0) and 0 < p_a < 1 for p_a, p_b in found)
    assert abs(found[0][0] - 0.5) > 1e-3, "a random model is not undecided"


def test_both_orders_are_averaged(chat_folder: Path) -> None:
    both = FeedbackModel.load(chat_folder, ANY_MASS, constitution="micro")
    one = FeedbackModel.load(chat_folder, [*ANY_MASS, "feedback.orders=one"], constitution="micro")
    p_ab = one.probabilities(ASK, GOOD, BAD, "danger-1")[0]
    p_ba = one.probabilities(ASK, BAD, GOOD, "danger-1")[1]
    assert both.probabilities(ASK, GOOD, BAD, "danger-1")[0] == pytest.approx((p_ab + p_ba) / 2)
    assert abs(p_ab - p_ba) > 1e-4
    # the other way round it says the same of each answer
    assert both.probabilities(ASK, BAD, GOOD, "danger-1")[::-1] == pytest.approx(
        both.probabilities(ASK, GOOD, BAD, "danger-1")
    )


def test_a_text_is_one_human_turn_and_a_principle_an_id_a_question_or_itself(chat_folder: Path) -> None:
    model = FeedbackModel.load(chat_folder, ANY_MASS, constitution="micro")
    known = model.constitution.comparison_principles[0]
    expected = model.probabilities([Turn("human", ASK)], GOOD, BAD, known.id)
    for principle in (known, ComparisonPrinciple("x", known.text), known.text):
        assert model.probabilities(ASK, GOOD, BAD, principle) == expected


def test_settings_come_from_a_run_for_another_model(run_of: Callable[..., RunContext], chat_folder: Path) -> None:
    ctx = run_of(feedback=FeedbackConfig(min_option_mass=0.0, orders="one"), models=MODELS)
    model = FeedbackModel.load(chat_folder, run=ctx.run_dir)
    assert (model.config.orders, model.constitution.name) == ("one", ctx.constitution.name)
    over = FeedbackModel.load(chat_folder, ["feedback.orders=both"], run=ctx.run_dir / "config.yaml")
    assert (over.config.orders, over.config.min_option_mass) == ("both", 0.0)


def test_one_line_says_what_is_wrong(run_of: Callable[..., RunContext], chat_folder: Path, tmp_path: Path) -> None:
    model = FeedbackModel.load(chat_folder, ANY_MASS, constitution="micro")

    def refused(error: type[Exception], words: str, *args: Any, of: FeedbackModel = model) -> None:
        with pytest.raises(error, match=words) as found:
            of.probabilities(*args)
        assert "\n" not in str(found.value)

    refused(DataError, "prompt: must end with a human turn", "  ", GOOD, BAD, "danger-1")
    refused(DataError, "must end with a human turn", [Turn("assistant", "x")], GOOD, BAD, "danger-1")
    refused(DataError, r"prompt\[0\]: must be a cai_dist.Turn", [("human", "x")], GOOD, BAD, "danger-1")
    refused(DataError, r"prompt\[0\].role='user'", [Turn("user", "x")], GOOD, BAD, "danger-1")  # type: ignore[arg-type]
    refused(DataError, "response_b: an answer must have text", ASK, GOOD, " ", "danger-1")
    refused(ConfigError, "principle='dangr-1': .* no such id; give one of danger-1", ASK, GOOD, BAD, "dangr-1")
    refused(DataError, "do not fit into models.context=512", "make " * 600, GOOD, BAD, "danger-1")
    thinks = FeedbackModel.load(chat_folder, [*ANY_MASS, "feedback.reasoning={}"], constitution="micro")
    refused(DataError, "leaves no room for reasoning", "make " * 600, GOOD, BAD, "danger-1", of=thinks)
    strict = FeedbackModel.load(chat_folder, ["feedback.min_option_mass=0.9"], constitution="micro")
    refused(ConfigError, "min_option_mass=0.9; it goes on with", ASK, GOOD, BAD, "danger-1", of=strict)

    with pytest.raises(ConfigError, match="neither world, smollm2, a model folder nor a hub name"):
        FeedbackModel.load(tmp_path / "no such")
    with pytest.raises(ConfigError, match="feedback.ordrs"):
        FeedbackModel.load(chat_folder, ["feedback.ordrs=one"])
    server = EndpointConfig(url="http://127.0.0.1:1/v1", model="m")
    for asks, whose in (
        (FeedbackConfig(endpoint=server), "a server"),
        (FeedbackConfig(model="mine:says"), "mine:says"),
    ):
        served = run_of(feedback=asks, models=MODELS)
        (served.run_dir / "prepare" / "models.json").write_text("{}")
        with pytest.raises(DataError, match=f"no feedback model: its answers come from {whose}"):
            FeedbackModel.load(served.run_dir)
