"""Answers of a model that this run's own workers hold: the log-probabilities of the option labels at the end of the
question (2212.08073, section 4.1), with `feedback.reasoning` at the end of the model's reasoning about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cai_dist.config.feedback import FeedbackConfig
from cai_dist.constitution import Labels
from cai_dist.data.chat import ChatFormat
from cai_dist.stages.ai_feedback.option_tokens import answer_form, behind, option_tokens
from cai_dist.stages.ai_feedback.questions import Question, Reply, Unanswered, reasoned, usable_reasoning
from cai_dist.stages.context import RunContext
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.stages.execution.generation import Answer, Ask, generate, score_labels
from cai_dist.types import Turn

if TYPE_CHECKING:
    from cai_dist.cluster.work_queue import WorkQueue


def ask_workers(
    ctx: RunContext, group: WorkQueue, folder: Path, phase: str, questions: Sequence[Question], model: str
) -> list[Reply]:
    """The answer of `model` (a folder or a hub name) to each question, in order. Shards of the phase `PHASE` (and with
    reasoning `PHASE-reasoning-K`) stay in `folder`. Raises Interrupted, ConfigError."""
    config, chat = ctx.config.feedback, chat_format(ctx, model)
    prompts = answer_prompts(ctx, group, folder, phase, questions, model, chat)
    asks = [Ask(q.key, p) for q, p in zip(questions, prompts, strict=True) if not isinstance(p, Unanswered)]
    found = iter(
        score_labels(
            ctx, group, folder, phase, asks, model=model, labels=option_tokens(chat, config, ctx.constitution),
            shard_size=config.shard_size,
        )
    )  # fmt: skip
    return [p if isinstance(p, Unanswered) else next(found) or Unanswered.TOO_LONG for p in prompts]


def answer_prompts(
    ctx: RunContext,
    group: WorkQueue,
    folder: Path,
    phase: str,
    questions: Sequence[Question],
    model: str,
    chat: ChatFormat,
) -> list[tuple[int, ...] | Unanswered]:
    """Ids of all that stands before the option label of each question, the model's own reasoning included, or why there
    is no such."""
    config, form = ctx.config.feedback, answer_form(ctx.config.feedback, ctx.constitution)
    thoughts: list[str | Unanswered] = [""] * len(questions)
    if config.reasoning is not None:
        thoughts = _reason(ctx, group, folder, phase, questions, model, chat)
    return [
        t if isinstance(t, Unanswered) else answer_ids(chat, config, q.turns, t, form.prefill)
        for q, t in zip(questions, thoughts, strict=True)
    ]


def answer_ids(
    chat: ChatFormat, config: FeedbackConfig, turns: Sequence[Turn], thoughts: str, prefill: str
) -> tuple[int, ...]:
    """Token ids of all that stands before the option label: the question in `turns`, and the opened answer with the
    model's `thoughts` (empty without `feedback.reasoning`) and `prefill`, which `answer_form` gives."""
    if config.reasoning is not None:
        answer = reasoned(config.reasoning.opening, thoughts, config.reasoning.closing)
        return chat.prompt_ids(turns, prefill=answer + prefill)
    if config.form == "text":
        return chat.text_ids(bare_text(turns) + prefill)
    return chat.prompt_ids(turns, prefill=prefill)


def bare_text(turns: Sequence[Turn]) -> str:
    """Questions and answers of the worked examples and the last question as one text: each answer right behind its
    question, a blank line before the next."""
    text = ""
    for turn in turns:
        if turn.role == "assistant":
            text += behind(text, turn.text)
        else:
            text += f"\n\n{turn.text}" if text else turn.text
    return text


def _reason(
    ctx: RunContext,
    group: WorkQueue,
    folder: Path,
    phase: str,
    questions: Sequence[Question],
    model: str,
    chat: ChatFormat,
) -> list[str | Unanswered]:
    """The model's reasoning about each question, sampled by the workers."""
    config = ctx.config.feedback
    reasoning = config.reasoning
    assert reasoning is not None

    def sample(attempt: int, asks: Sequence[Ask]) -> list[Answer]:
        return generate(
            ctx, group, folder, f"{phase}-reasoning-{attempt}", asks, model=model, chat=chat,
            sampling=reasoning.sampling, shard_size=config.shard_size,
        )  # fmt: skip

    return chains_of_thought(config, ctx.constitution.templates.labels, chat, questions, sample)


def chains_of_thought(
    config: FeedbackConfig,
    labels: Labels,
    chat: ChatFormat,
    questions: Sequence[Question],
    sample: Callable[[int, Sequence[Ask]], Sequence[Answer]],
) -> list[str | Unanswered]:
    """The reasoning about each question, or why there is none. `sample(attempt, asks)` answers prompts; what cannot be
    used is sampled again, `feedback.reasoning.retries` times. `labels` are the words that open each party's turn."""
    reasoning = config.reasoning
    assert reasoning is not None
    found: list[str | Unanswered] = [Unanswered.NO_REASONING] * len(questions)
    left = list(range(len(questions)))
    for attempt in range(reasoning.retries + 1):
        asks = [Ask(questions[i].key, chat.prompt_ids(questions[i].turns, prefill=reasoning.opening)) for i in left]
        for i, answer in zip(left, sample(attempt, asks), strict=True):
            if answer.finish == "too_long":
                found[i] = Unanswered.TOO_LONG
            elif text := usable_reasoning(config, labels, answer.text):
                found[i] = text
        left = [i for i in left if found[i] is Unanswered.NO_REASONING]
        if not left:
            break
    return found
