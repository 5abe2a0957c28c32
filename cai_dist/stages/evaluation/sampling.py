"""Answers of the models that are compared, kept from one evaluation to the next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cai_dist.config.stages import EVALUATE
from cai_dist.config.training import SamplingConfig
from cai_dist.stages.context import RunContext, model_settings
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.stages.execution.generation import Ask, generate
from cai_dist.stages.execution.reuse import model_hash, reuse_from
from cai_dist.stages.tables.records import Sampled
from cai_dist.types import Prompt

if TYPE_CHECKING:
    from cai_dist.cluster.work_queue import WorkQueue


def sample_answers(
    ctx: RunContext,
    group: WorkQueue,
    folder: Path,
    label: str,
    model: str,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    times: int | None = None,
) -> list[Sampled]:
    """Answers of one model to every prompt, `times` (default: `samples_per_prompt`) each, those of an earlier
    evaluation where they were made from the same. Prompts without room for an answer are left out and counted."""
    config = ctx.config.evaluate
    times = times or config.samples_per_prompt
    chat = chat_format(ctx, model)
    repeated = [p for p in prompts for _ in range(times)]
    asks = [Ask(f"{p.id}/{i % times}", chat.prompt_ids(p.turns)) for i, p in enumerate(repeated)]
    provenance = {
        "model": model_hash(model),
        "asks": [[a.key, list(a.prompt_ids)] for a in asks],
        "stop_ids": list(chat.stop_ids),
        "sampling": sampling.model_dump(mode="json"),
        "shard_size": config.shard_size,
        "seed": ctx.config.seed,
        **model_settings(ctx.config),
    }
    reuse_from(ctx, folder, label, provenance)
    answers = generate(
        ctx, group, folder, label, asks, model=model, chat=chat, sampling=sampling, shard_size=config.shard_size
    )
    kept = [Sampled(p, a.text) for p, a in zip(repeated, answers, strict=True) if a.finish != "too_long"]
    series = f"{EVALUATE}_{label}"
    ctx.tracker.rewind(series, -1)
    ctx.log(series, 0, answers=len(kept), too_long=len(answers) - len(kept))
    if len(kept) < len(answers):
        ctx.console.warn(
            f"{label}: {len(answers) - len(kept)} of {len(answers)} prompts leave no room for an answer of "
            f"{sampling.max_new_tokens} tokens in models.context={ctx.config.models.context}; left out"
        )
    return kept
