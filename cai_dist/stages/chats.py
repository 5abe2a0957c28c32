"""The chat format of a model under this run's settings."""

from __future__ import annotations

from cai_dist.data.chat import ChatFormat
from cai_dist.models.load import load_tokenizer
from cai_dist.stages.context import RunContext


def chat_format(run: RunContext, model: str) -> ChatFormat:
    """How conversations become token ids for `model` (a folder or a hub name)."""
    return ChatFormat(load_tokenizer(model), run.config.models.chat, run.constitution.templates.labels)
