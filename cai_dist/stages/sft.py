"""Stage 2: the pretrained model is fine-tuned on revised answers and on helpful answers: the SL-CAI model
(2212.08073, sections 1.2 and 3.1). Only answers are learned, never critiques."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

from cai_dist.config.run import RunConfig
from cai_dist.config.stages import SFT
from cai_dist.data.batches import loss_weight
from cai_dist.errors import DataError
from cai_dist.stages.context import RunContext, model_settings, unset
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.stages.execution.model_paths import model_path
from cai_dist.stages.execution.training import ds_files, total_steps, train
from cai_dist.stages.execution.worker_groups import export_model, trained_model
from cai_dist.stages.tables.records import read_revisions
from cai_dist.types import Demonstration, TokenSequence

NAME: Final = SFT


def settings(config: RunConfig) -> dict[str, Any]:
    """What decides the result of this stage."""
    return {
        "sft": config.sft.model_dump(mode="json", exclude={"train": {"checkpoint_every"}, **unset(config.sft)}),
        **model_settings(config),
    }


def inputs(ctx: RunContext) -> list[Path]:
    """Revisions, helpful answers, the model to start from, and the user's DeepSpeed file."""
    return [
        ctx.paths.revisions,
        ctx.paths.helpful_answers,
        ctx.paths.models,
        *ds_files(ctx.config.sft.train.sharding),
    ]


def execute(ctx: RunContext) -> list[Path]:
    """Train and export `sft/model` in the Hugging Face layout, or in PEFT's (`sft.lora.save`)."""
    folder = ctx.folder(NAME)
    target = ctx.paths.sl_model
    model = model_path(ctx, "pretrained")
    examples = token_examples(ctx, model)
    config = ctx.config.sft.train
    steps = total_steps(len(examples), config, "sft.train")
    if not target.is_dir():
        dropout = ctx.config.sft.dropout == "model"
        lora = ctx.config.sft.lora
        with trained_model(ctx, NAME, "language", model, config, steps, dropout=dropout, lora=lora) as group:
            train(ctx, NAME, group, examples, config, loss_weight, folder)
            export_model(
                lambda folder: group.broadcast("sft: export", "export", str(folder)), target, ctx.constitution_note
            )
    shutil.rmtree(ctx.paths.checkpoints(NAME), ignore_errors=True)
    return [target]


def demonstrations(ctx: RunContext) -> list[Demonstration]:
    """What to imitate: the revisions that `sft.revisions` asks for, without parse failures, and helpful answers."""
    wanted, rounds = ctx.config.sft.revisions, ctx.config.revise.rounds
    keep = {"all": range(1, rounds + 1), "final": range(max(rounds, 1), rounds + 1)}.get(str(wanted))
    if keep is None:
        keep = range(1, int(wanted) + 1)
    demos = [
        Demonstration(r.prompt, r.response, f"revision:{r.round}")
        for r in read_revisions(ctx.paths.revisions)
        if r.round in keep and not r.failure
    ]
    if not demos and rounds:
        file = ctx.paths.revisions
        raise DataError(f"{file}: no revision parsed; read the transcripts in {file.parent}")
    demos += [
        Demonstration(r.prompt, r.response, "helpful")
        for r in read_revisions(ctx.paths.helpful_answers)
        if not r.failure
    ]
    return demos


def token_examples(ctx: RunContext, model: str) -> list[TokenSequence]:
    """The demonstrations as token ids; those longer than the context are left out and counted in the metrics."""
    chat = chat_format(ctx, model)
    all_examples = [chat.example(d.prompt.turns, d.response) for d in demonstrations(ctx)]
    kept = [x for x in all_examples if len(x) <= ctx.config.models.context]
    ctx.tracker.rewind(f"{NAME}_data", -1)
    ctx.log(f"{NAME}_data", 0, examples=len(kept), too_long=len(all_examples) - len(kept))
    return kept
