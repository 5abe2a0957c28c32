"""The chat format of a model under this run's settings."""

from __future__ import annotations

from datetime import date

from cai_dist.data.chat import ChatFormat
from cai_dist.models.ends import end_ids
from cai_dist.models.load import load_tokenizer
from cai_dist.stages.context import RunContext


def chat_format(run: RunContext, model: str) -> ChatFormat:
    """How conversations become token ids for `model` (a folder or a hub name). Raises ConfigError where its chat
    template cannot be used."""
    models = run.config.models
    day = models.chat_date or run.manifest.date
    return ChatFormat(
        load_tokenizer(model),
        models.chat,
        run.constitution.templates.labels,
        arguments=models.chat_arguments,
        ends=end_ids(model),
        day=date.fromisoformat(day),
    )
