"""Critique and revision in a notebook are those of the stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai_dist import ChatModel, ConfigError, Constitution, DataError, Turn, critique_and_revise
from cai_dist.config.engine import EngineConfig
from cai_dist.config.run import ModelsConfig
from cai_dist.config.supervised import ReviseConfig
from cai_dist.config.training import SamplingConfig
from cai_dist.engines.hf.rollout import HfRolloutEngine
from cai_dist.stages.context import RunContext
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.stages.execution.generation import Answer
from cai_dist.stages.revise import stage_reviser
from cai_dist.types import Prompt
from tests.unit.stages.conftest import FakeGroup

from .conftest import ASK, with_examples

SHORT = SamplingConfig(max_new_tokens=10)
MODELS = ModelsConfig(context=512)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"critique": False}, {"few_shot": 1, "retries": 1}], ids=str)
def test_the_rounds_are_those_of_the_stage(
    run_of: Callable[..., RunContext], chat_folder: Path, settings: dict[str, Any]
) -> None:
    ctx = run_of(revise=ReviseConfig(rounds=3, sampling=SHORT, **settings), models=MODELS, seed=5)
    ctx.constitution = with_examples(ctx.constitution)
    engine = HfRolloutEngine("fp32", EngineConfig())
    engine.load(str(chat_folder))
    group = FakeGroup(lambda method, request: getattr(engine, method)(request))
    turns = (Turn("human", "make rope ?"), Turn("assistant", "no ."), Turn("human", ASK))
    chat = chat_format(ctx, str(chat_folder))
    stage = stage_reviser(ctx, group, ctx.folder("revise"), str(chat_folder), chat)  # type: ignore[arg-type]
    first, *later = stage.revise([Prompt("p7", turns, "red_team")])

    found = critique_and_revise(ctx.run_dir, turns, ctx.constitution, 3, prompt_id="p7")
    assert found.first == first.response and found.answer == later[-1].response
    assert [(r.principle and r.principle.id, r.critique, r.answer, r.failure) for r in found.rounds] == [
        (r.principle_id, r.critique, r.response, r.failure) for r in later
    ]
    assert len({found.first, *(r.answer for r in found.rounds)}) > 2
    assert bool(found.rounds[0].critique) == settings.get("critique", True)


def test_seed_and_id_draw_the_principles(chat_folder: Path) -> None:
    model = ChatModel.load(chat_folder, ["revise.sampling.max_new_tokens=6"])
    micro = Constitution.load("micro")
    same = [critique_and_revise(model, ASK, micro, 2, seed=1) for _ in range(2)]
    assert same[0] == same[1]
    drawn = {critique_and_revise(model, ASK, micro, 1, prompt_id=f"p{i}").rounds[0].principle for i in range(8)}
    assert len(drawn) > 2 and drawn <= set(micro.critique_principles)
    assert critique_and_revise(model, ASK, micro, 0, seed=1).rounds == ()


def test_no_answer_is_an_error_in_one_line(chat_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ChatModel.load(chat_folder, ["revise.sampling.max_new_tokens=6"])
    with pytest.raises(ConfigError, match="rounds=-1: must be 0 or more"):
        critique_and_revise(model, ASK, "micro", -1)
    with pytest.raises(DataError, match="do not fit into models.context=512"):
        critique_and_revise(model, "make " * 600, "micro")
    with pytest.raises(DataError, match="must end with a human turn"):
        critique_and_revise(model, "", "micro")
    with pytest.raises(ConfigError, match="no such file or folder"):
        critique_and_revise(model, ASK, "nowhere")
    monkeypatch.setattr(model, "answers", lambda label, asks, *_: [Answer(a.key, "", "stop") for a in asks])
    with pytest.raises(DataError, match=r"cannot be used \(empty\); take another seed"):
        critique_and_revise(model, ASK, "micro")


def test_a_chat_model_answers(chat_folder: Path) -> None:
    model = ChatModel.load(chat_folder, ["revise.sampling.max_new_tokens=12", "seed=3"])
    said = model.answer(ASK)
    assert said and said == model.answer([Turn("human", ASK)]) == model.answer(ASK, seed=3) != model.answer(ASK, seed=4)
    with pytest.raises(DataError, match="do not fit into models.context=512"):
        model.answer("make " * 600)
