"""The chat format of a model under this run's settings."""

from __future__ import annotations

from datetime import date

from cai_dist.config.run import ModelsConfig
from cai_dist.constitution import Labels
from cai_dist.data.chat import ChatFormat
from cai_dist.models.ends import end_ids
from cai_dist.models.load import load_tokenizer
from cai_dist.stages.context import RunContext


def chat_format(ctx: RunContext, model: str) -> ChatFormat:
    """How conversations become token ids for `model` (a folder or a hub name) in this run, whose chats have one day.
    Raises ConfigError where its chat template cannot be used."""
    return format_of(ctx.config.models, ctx.constitution.templates.labels, model, ctx.manifest.date)


def format_of(models: ModelsConfig, labels: Labels, model: str, day: str) -> ChatFormat:
    """The chat format of `model` outside of a run; `day` (YYYY-MM-DD) is what templates are told where
    `models.chat_date` is not set."""
    return ChatFormat(
        load_tokenizer(model),
        models.chat,
        labels,
        arguments=models.chat_arguments,
        ends=end_ids(model),
        day=date.fromisoformat(models.chat_date or day),
    )
