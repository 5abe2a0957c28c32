"""The first part of stage `preference`, where `data.ranked_answers` names a source: the preference model learns ranked
answers of people before it sees a comparison (Askell et al. 2021, 2112.00861)."""

from __future__ import annotations

from pathlib import Path

from cai_dist.config.stages import PREFERENCE
from cai_dist.data.chat import ChatFormat
from cai_dist.data.ranked import check_labels, labelled_pairs
from cai_dist.errors import DataError
from cai_dist.stages.context import RunContext
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.stages.execution.training import total_steps, train
from cai_dist.stages.execution.worker_groups import export_model, trained_model
from cai_dist.stages.tables.records import read_ranked
from cai_dist.types import LabelledPair

NAME = "pm_pretraining"


def check_label_words(ctx: RunContext, path: str) -> None:
    """Refuse words of `preference.pretraining` that the model in `path` cannot say. Raises ConfigError."""
    if ctx.config.data.ranked_answers.source != "none" and PREFERENCE in ctx.config.stages:
        check_labels(chat_format(ctx, path), ctx.config.preference.pretraining)


def pretrained(ctx: RunContext, model: str, chat: ChatFormat, folder: Path) -> Path:
    """Train from the trunk in `model` (or the newest checkpoint under `folder`) and export `folder/model`, a preference
    model; what is there is not made again. Raises ConfigError, DataError, Interrupted."""
    target = folder / "model"
    if target.is_dir():
        return target
    config = ctx.config.preference.pretraining
    check_labels(chat, config)
    pairs = _pairs(ctx, chat)
    steps = total_steps(len(pairs), config.train, "preference.pretraining.train")
    settings = {"language_weight": config.language_weight, "lora": ctx.config.preference.lora}
    with trained_model(ctx, NAME, "pm_pretraining", model, config.train, steps, **settings) as group:
        train(ctx, NAME, group, pairs, config.train, lambda batch: float(len(batch)), folder)
        export_model(
            lambda folder: group.broadcast(f"{NAME}: export", "export", str(folder)), target, ctx.constitution_note
        )
    return target


def _pairs(ctx: RunContext, chat: ChatFormat) -> list[LabelledPair]:
    config, context = ctx.config.preference.pretraining, ctx.config.models.context
    questions = read_ranked(ctx.paths.ranked)
    pairs, too_long = labelled_pairs(questions, chat, config, context, ctx.config.seed)
    if not pairs:
        raise DataError(
            f"{ctx.paths.ranked}: no pair of answers among {len(questions)} questions fits into "
            f"models.context={context} tokens ({too_long} are longer); raise it, or set data.ranked_answers.source=none"
        )
    ctx.tracker.rewind(f"{NAME}_data", -1)
    ctx.log(f"{NAME}_data", 0, questions=len(questions), pairs=len(pairs), too_long=too_long)
    return pairs
