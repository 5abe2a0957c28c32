"""How the question about two answers ends and how its options are spelled, and whether a model can say so: looked at
before anything is sampled."""

from __future__ import annotations

from dataclasses import dataclass

from cai_dist.config.feedback import FeedbackConfig
from cai_dist.constitution import Constitution
from cai_dist.data.chat import ChatFormat
from cai_dist.errors import ConfigError
from cai_dist.stages.ai_feedback.own_model import own_model
from cai_dist.stages.ai_feedback.server_model import check_server
from cai_dist.stages.context import RunContext
from cai_dist.stages.execution.chat_format import chat_format

_THOUGHTS = "…"
"""Stands for the model's reasoning where what follows it is laid out."""


@dataclass(frozen=True)
class AnswerForm:
    """`prefill` is what opens the answer (after any reasoning); `labels` are the two continuations of it."""

    prefill: str
    labels: tuple[str, str]


def answer_form(config: FeedbackConfig, constitution: Constitution) -> AnswerForm:
    """How the answer goes on behind the question (form `text`) or behind the reasoning: with a space where there is
    none. In the form `chat` without reasoning it begins with the prefill or the label itself."""
    if config.reasoning is not None:
        before = config.reasoning.closing or _THOUGHTS
    elif config.form == "text":
        before = constitution.templates.comparison
    else:
        return AnswerForm(config.prefill, config.option_labels)
    a, b = config.option_labels
    if config.prefill:
        return AnswerForm(behind(before, config.prefill), (a, b))
    return AnswerForm("", (behind(before, a), behind(before, b)))


def behind(before: str, text: str) -> str:
    """`text` as it goes on from `before`: with a space in front unless one of them brings white space."""
    return text if before[-1:].isspace() or text[:1].isspace() else f" {text}"


def option_tokens(
    chat: ChatFormat, config: FeedbackConfig, constitution: Constitution
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of both option labels where they will stand; several tokens are summed. Raises ConfigError where this
    tokenizer cannot say a label or cannot tell the two apart."""
    form = answer_form(config, constitution)
    follows_text = config.reasoning is not None or config.form == "text"
    return chat.option_ids(form.prefill or (_THOUGHTS if follows_text else ""), form.labels)


def check_feedback(ctx: RunContext, model: str) -> None:
    """Refuse a feedback model, in the folder `model` or under that hub name, or a server in its place, that cannot give
    labels. Raises ConfigError, EndpointError."""
    if ctx.config.feedback.endpoint is not None:
        check_server(ctx)
    elif ctx.config.feedback.model is not None:
        own_model(ctx.config.feedback.model)
    else:
        check_tokens(ctx, model)


def check_tokens(ctx: RunContext, model: str) -> None:
    """Refuse, before anything is sampled, option labels and fixed words of the answer that `model` (a folder or a hub
    name) cannot say; warn where the labels have different numbers of tokens, which favours one. Raises ConfigError."""
    config = ctx.config.feedback
    chat = chat_format(ctx, model)
    a, b = option_tokens(chat, config, ctx.constitution)
    if len(a) != len(b):
        ctx.console.warn(
            f"feedback.option_labels={list(config.option_labels)}: {len(a)} and {len(b)} tokens in this model; the "
            "shorter one is favoured"
        )
    words = {"feedback.prefill": config.prefill}
    if config.reasoning is not None:
        words |= {
            "feedback.reasoning.opening": config.reasoning.opening,
            "feedback.reasoning.closing": config.reasoning.closing,
        }
    for key, text in words.items():
        back = chat.response_text(chat.text_ids(text)) if text else ""
        if back.split() != text.split() and "".join(back.split()) != "".join(text.split()):
            raise ConfigError(f"{key}={text!r}: this model's tokenizer cannot say it (it reads back as {back!r})")
