"""Stage 4: the preference model: one scalar per answer, learned from ranked answers of people where there are any, then
from soft AI labels and human helpfulness labels (2212.08073, section 4.1; 2204.05862, section 3: the score is read at
the last token of the whole conversation)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cai_dist.config.run import RunConfig
from cai_dist.config.stages import PREFERENCE
from cai_dist.data.chat import ChatFormat
from cai_dist.stages.comparisons import pm_pretraining
from cai_dist.stages.comparisons.pairs import (
    ai_comparisons,
    disjoint_halves,
    human_comparisons,
    log_heldout,
    token_pairs,
    training_comparisons,
)
from cai_dist.stages.comparisons.pm_calibration import (
    Measured,
    agreement_figures,
    by_source,
    score_comparisons,
    temperature_figures,
)
from cai_dist.stages.context import RunContext, model_settings, unset
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.stages.execution.model_paths import model_path
from cai_dist.stages.execution.training import ds_files, total_steps, train
from cai_dist.stages.execution.worker_groups import export_model, trained_model
from cai_dist.tracking.run_folder import CHECKPOINTS
from cai_dist.types import Comparison, ScoredPair

NAME: Final = PREFERENCE
SECOND = "preference_second"
"""The model on the other half, in metrics and phases."""


def settings(config: RunConfig) -> dict[str, Any]:
    """What decides the result of this stage."""
    pretrained = config.data.ranked_answers.source != "none"
    left_out: dict[str, Any] = {"gate": True, "train": {"checkpoint_every"}, **unset(config.preference)}
    left_out["pretraining"] = {"train": {"checkpoint_every"}} if pretrained else True
    return {
        "preference": config.preference.model_dump(mode="json", exclude=left_out),
        **model_settings(config),
    }


def inputs(ctx: RunContext) -> list[Path]:
    """Comparisons, ranked answers, the models the trunk may start from, and the user's DeepSpeed files."""
    paths, config = ctx.paths, ctx.config.preference
    ranked = ctx.config.data.ranked_answers.source != "none"
    return [
        ctx.paths.comparisons,
        paths.human,
        paths.models,
        *([paths.ranked] if ranked else []),
        ctx.paths.sl_model,
        *ds_files(config.train.sharding, *([config.pretraining.train.sharding] if ranked else [])),
    ]


def execute(ctx: RunContext) -> list[Path]:
    """Train and export `preference/model` (AutoModelForSequenceClassification layout, or PEFT's) and, with `halves`,
    `preference/second/model`; measure them in `heldout.json`. What is there is not made again."""
    ctx.folder(NAME)
    config = ctx.config.preference
    model = model_path(ctx, "pretrained") if config.init == "pretrained" else str(ctx.paths.sl_model)
    chat = chat_format(ctx, model)
    targets = {NAME: ctx.paths.preference_model} | ({SECOND: ctx.paths.second_model} if config.halves else {})
    if not all(target.is_dir() for target in targets.values()):
        if ctx.config.data.ranked_answers.source != "none":
            model = str(pm_pretraining.pretrained(ctx, model, chat, ctx.paths.pm_pretraining))
        for name, comparisons in _parts(ctx).items():
            if not targets[name].is_dir():
                fit(ctx, name, model, token_pairs(ctx, name, chat, comparisons), targets[name])
    ctx.write_result(ctx.paths.heldout(NAME), measure(ctx, chat, list(targets.values())))
    second = ctx.paths.second_model.parent / CHECKPOINTS
    for scratch in (ctx.paths.checkpoints(NAME), second, ctx.paths.pm_pretraining):
        shutil.rmtree(scratch, ignore_errors=True)
    return [*targets.values(), ctx.paths.heldout(NAME)]


def fit(ctx: RunContext, name: str, model: str, pairs: Sequence[ScoredPair], target: Path) -> None:
    """Train from `model` (or the newest checkpoint beside `target`) on `pairs` and export to `target`."""
    config = ctx.config.preference
    steps = total_steps(len(pairs), config.train, "preference.train")
    with trained_model(
        ctx, name, "preference", model, config.train, steps, margin=config.margin, lora=config.lora
    ) as group:
        train(ctx, name, group, pairs, config.train, lambda batch: float(len(batch)), target.parent)
        export_model(
            lambda folder: group.broadcast(f"{name}: export", "export", str(folder)), target, ctx.constitution_note
        )


def measure(ctx: RunContext, chat: ChatFormat, models: Sequence[Path]) -> dict[str, Any]:
    """Figures of the first model on held-out comparisons without ties.

    Returns: `n`, `accuracy`, `ece` and `mean_score` on the AI's comparisons (see `log_heldout`); `sources`, the figures
        for `ai` and `human` apart; `temperature`, fitted on all of them, with `preference.calibrate`; with a second
        model `halves`: how far both agree, and the `second` one's figures for each source.
    """
    calibrate = ctx.config.preference.calibrate
    heldout = [*ai_comparisons(ctx, "heldout"), *human_comparisons(ctx, "heldout")]
    found = [score_comparisons(ctx, chat, model, heldout, "preference: held-out") for model in models]
    ai = [m for m in found[0] if m.comparison.source == "ai"]
    figures = log_heldout(ctx, NAME, [m.scores for m in ai], [m.p_a for m in ai], [m.comparison.prompt for m in ai])
    sources = by_source(found[0], calibrate)
    for source, numbers in sources.items():
        ctx.tracker.rewind(f"{NAME}_heldout_{source}", -1)
        ctx.log(f"{NAME}_heldout_{source}", 0, **{k: numbers[k] for k in ("n", "accuracy", "ece", "brier")})
    return {
        **figures,
        "sources": sources,
        **({"temperature": temperature_figures(found[0])} if calibrate else {}),
        **({"halves": _halves(found[0], found[1], calibrate)} if len(found) > 1 else {}),
    }


def _parts(ctx: RunContext) -> dict[str, list[Comparison]]:
    """What each model learns from, by its name in metrics."""
    config = ctx.config.preference
    everything = training_comparisons(ctx, NAME, config.helpful_fraction, config.label_fraction)
    if not config.halves:
        return {NAME: everything}
    first, second = disjoint_halves(everything, ctx.config.seed)
    return {NAME: first, SECOND: second}


def _halves(first: Sequence[Measured], second: Sequence[Measured], calibrate: bool) -> dict[str, Any]:
    return {**agreement_figures(first, second), "second": by_source(second, calibrate)}
