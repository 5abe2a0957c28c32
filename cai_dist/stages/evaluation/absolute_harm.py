"""Absolute harmfulness: a model trained by least squares on people's ratings, 0 to 4, rates the answers to red-team
prompts (2212.08073, section 4.5)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import correlation, fmean, pstdev
from typing import Any

from cai_dist.data.chat import ChatFormat
from cai_dist.stages.context import RunContext
from cai_dist.stages.execution.answer_scoring import score_texts
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.stages.execution.model_paths import model_path
from cai_dist.stages.execution.training import total_steps, train
from cai_dist.stages.execution.worker_groups import export_model, trained_model
from cai_dist.stages.tables.intervals import by_prompt, mean_figure
from cai_dist.stages.tables.ratings import SERIES, rated_answers, split
from cai_dist.stages.tables.records import Sampled
from cai_dist.tracking.run_folder import CHECKPOINTS
from cai_dist.types import Prompt, RatedAnswer, RatedSequence


def absolute_harm(ctx: RunContext, folder: Path, answers: Mapping[str, Mapping[str, Sequence[Sampled]]]) -> Any:
    """Train the rating model (or go on with it) under `folder` and rate.

    Args:
        answers: by how they were drawn (`sampled`, `greedy`), each model's answers.

    Returns: for each way of drawing the mean rating of each model's answers to red-team prompts, with intervals; and
        `heldout`: how well ratings of prompts that were kept apart are told (see `errors`). Raises DataError.
    """
    known = rated_answers(ctx)
    train_on, apart = split(known, ctx.config.evaluate.ratings.heldout, ctx.config.seed)
    base = model_path(ctx, "pretrained")
    chat, model = chat_format(ctx, base), folder / "model"
    if not model.is_dir():
        _train(ctx, folder, base, chat, train_on, model)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    red_team = {
        (way, name): [s for s in sampled if s.prompt.kind == "red_team"]
        for way, models in answers.items()
        for name, sampled in models.items()
    }
    fits = [x for x in apart if len(_ids(chat, x.prompt, x.response)) <= ctx.config.models.context]
    texts = [(x.prompt.turns, x.response) for x in fits]
    texts += [(s.prompt.turns, s.response) for sampled in red_team.values() for s in sampled]
    scores = iter(score_texts(ctx, str(model), chat, texts, "evaluate: ratings"))
    result: dict[str, Any] = {"heldout": errors([next(scores) for _ in fits], [x.rating for x in fits], train_on)}
    for (way, name), sampled in red_team.items():
        rated = [(s.prompt, next(scores)) for s in sampled]
        result.setdefault(way, {})[name] = mean_figure(by_prompt(rated))
    return result


def errors(said: Sequence[float], true: Sequence[float], learned: Sequence[RatedAnswer]) -> dict[str, Any]:
    """`n`, `rmse`, `mae` and `correlation` of ratings that the model says and people gave; `rmse_of_mean` is the error
    of saying the mean of what was learned every time, for comparison."""
    if not true:
        return {"n": 0, "rmse": None, "mae": None, "correlation": None, "rmse_of_mean": None}
    mean = fmean(x.rating for x in learned)
    varies = len(true) > 1 and pstdev(said) > 0 and pstdev(true) > 0
    return {
        "n": len(true),
        "rmse": math.sqrt(fmean((a - b) ** 2 for a, b in zip(said, true, strict=True))),
        "mae": fmean(abs(a - b) for a, b in zip(said, true, strict=True)),
        "correlation": correlation(said, true) if varies else None,
        "rmse_of_mean": math.sqrt(fmean((mean - b) ** 2 for b in true)),
    }


def _train(
    ctx: RunContext, folder: Path, base: str, chat: ChatFormat, known: Sequence[RatedAnswer], target: Path
) -> None:
    config = ctx.config.evaluate.ratings.train
    made = [(_ids(chat, x.prompt, x.response), x.rating) for x in known]
    kept = [RatedSequence(ids, (0.0,) * len(ids), r) for ids, r in made if len(ids) <= ctx.config.models.context]
    ctx.tracker.rewind(f"{SERIES}_data", -1)
    ctx.log(f"{SERIES}_data", 0, ratings=len(kept), too_long=len(made) - len(kept))
    steps = total_steps(len(kept), config, "evaluate.ratings.train")
    with trained_model(ctx, SERIES, "rating", base, config, steps) as group:
        train(ctx, SERIES, group, kept, config, lambda batch: float(len(batch)), folder)
        export_model(lambda out: group.broadcast("rating: export", "export", str(out)), target, ctx.constitution_note)


def _ids(chat: ChatFormat, prompt: Prompt, response: str) -> tuple[int, ...]:
    return chat.example(prompt.turns, response).ids
