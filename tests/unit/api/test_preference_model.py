"""The preference model of a notebook scores as the reward model of PPO does."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from cai_dist import DataError, PreferenceModel, Turn
from cai_dist.config.run import ModelsConfig
from cai_dist.constitution import Labels
from cai_dist.stages.context import RunContext
from cai_dist.stages.execution.answer_scoring import as_sample
from cai_dist.stages.execution.chat_format import format_of
from cai_dist.types import RankInfo, StepShard
from cai_dist.workers.reward import RewardWorker

from .conftest import ASK, BAD, GOOD, save_preference_model


def test_the_raw_score_is_that_of_the_reward_model(preference_folder: Path) -> None:
    chat = format_of(ModelsConfig(), Labels(), str(preference_folder), "2026-01-01")
    worker = RewardWorker(RankInfo("reward", 0, 1), model=str(preference_folder), dtype="fp32", end_id=chat.eos_id)
    turns = (Turn("human", "make rope ?"), Turn("assistant", "no ."), Turn("human", ASK))
    samples = (as_sample(chat, turns, GOOD), as_sample(chat, turns, BAD))
    expected = worker.scores(StepShard((samples,)))
    model = PreferenceModel.load(preference_folder)
    assert [model.raw_score(turns, x) for x in (GOOD, BAD)] == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 0.1


def test_the_score_is_the_sigmoid_of_the_raw_one(preference_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PreferenceModel.load(preference_folder)
    raw = model.raw_score(ASK, GOOD)
    assert raw == model.raw_score([Turn("human", ASK)], GOOD) and abs(raw) > 1e-3
    assert model.score(ASK, GOOD) == pytest.approx(1 / (1 + math.exp(-raw)))
    for extreme, expected in ((800.0, 1.0), (-800.0, 0.0), (0.0, 0.5)):
        monkeypatch.setattr(model, "raw_score", lambda prompt, response, x=extreme: x)
        assert model.score(ASK, GOOD) == expected


def test_a_run_gives_its_preference_model(
    run_of: Callable[..., RunContext], chat_folder: Path, preference_folder: Path
) -> None:
    ctx = run_of(models=ModelsConfig(context=512))
    with pytest.raises(DataError, match="no preference model: stage preference has not made it"):
        PreferenceModel.load(ctx.run_dir)
    save_preference_model(ctx.run_dir / "preference" / "model", chat_folder)
    expected = PreferenceModel.load(preference_folder).raw_score(ASK, GOOD)
    assert PreferenceModel.load(ctx.run_dir).raw_score(ASK, GOOD) == pytest.approx(expected, abs=1e-5)


def test_one_line_says_what_is_wrong(chat_folder: Path, preference_folder: Path) -> None:
    with pytest.raises(DataError, match="holds LlamaForCausalLM, a model without a scalar head"):
        PreferenceModel.load(chat_folder)
    model = PreferenceModel.load(preference_folder)
    with pytest.raises(DataError, match="response: an answer must have text"):
        model.score(ASK, "")
    with pytest.raises(DataError, match="do not fit into models.context=512"):
        model.score(ASK, "no " * 600)
