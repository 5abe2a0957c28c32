"""Whether a model of this run's own workers names an option at all, asked before anything is sampled; and what it says
where it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_dist.chat_api.http import escaped
from cai_dist.errors import ConfigError
from cai_dist.stages.ai_feedback.first_question import first_question, low_mass
from cai_dist.stages.ai_feedback.local_model import answer_prompts
from cai_dist.stages.ai_feedback.option_tokens import answer_form, option_tokens
from cai_dist.stages.ai_feedback.option_words import core, keeps, names
from cai_dist.stages.ai_feedback.questions import Question, Unanswered, option_mass
from cai_dist.stages.context import RunContext
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.types import GenerateRequest, LabelRequest, SamplingParams

if TYPE_CHECKING:
    from cai_dist.cluster.work_queue import WorkQueue

_GOES_ON = 8
"""Tokens that show how an answer goes on."""


def needs_check(ctx: RunContext) -> bool:
    """Whether the made-up question can be put: not to a server, nor to the micro-world's model, which knows none of its
    words; nor where any mass will do (`feedback.min_option_mass` 0)."""
    models = ctx.config.models
    source = models.pretrained if models.feedback == "sl" else models.feedback
    return not ctx.config.feedback.elsewhere and source != "world" and ctx.config.feedback.min_option_mass > 0


def check_workers(ctx: RunContext, group: WorkQueue, folder: Path, model: str) -> None:
    """Refuse a feedback `model` (a folder or a hub name) that names no option of a made-up comparison in either order.
    Raises ConfigError, Interrupted."""
    problems = [
        said_locally(ctx, group, folder, f"first-{int(swapped)}", first_question(ctx, swapped=swapped), model)
        for swapped in (False, True)
    ]
    if all(problems):
        raise ConfigError(f"models.feedback={ctx.config.models.feedback}: {problems[0]}")


def said_locally(ctx: RunContext, group: WorkQueue, folder: Path, phase: str, question: Question, model: str) -> str:
    """Why the answer of `model` to `question` gives no label, how it goes on and what to do, in one line; "" where it
    gives one, or the question does not come so far."""
    config, chat = ctx.config.feedback, chat_format(ctx, model)
    [prompt] = answer_prompts(ctx, group, folder, phase, [question], model, chat)
    if isinstance(prompt, Unanswered) or len(prompt) + _GOES_ON > ctx.config.models.context:
        return ""
    what = f"{folder.name}: {phase}"
    greedy = SamplingParams(_GOES_ON, 0.0, 1.0, tuple(chat.stop_ids))
    [answer] = _one(group, what, "generate", GenerateRequest((prompt,), greedy, 0, model))
    options = option_tokens(chat, config, ctx.constitution)
    said = answer.response_ids.tolist()
    [found] = _one(group, what, "score_labels", LabelRequest((prompt,), (*options, tuple(said[:1])), model))
    mass, text = option_mass(found[:2]), str(chat.tokenizer.decode(said))
    seen = f"it goes on with '{escaped(text)}' (the first token has probability {math.exp(found[2]):.2g})"
    if not mass >= config.min_option_mass:
        return low_mass(config, mass, "", seen)
    whole = answer_form(config, ctx.constitution).prefill + text
    cores = [core(label) for label in config.option_labels]
    if names(whole, cores) is not None and not keeps(whole, cores):
        return low_mass(config, mass, f"the answer '{escaped(whole)}' names no option, a word follows; ", seen)
    return ""


def _one(group: WorkQueue, phase: str, method: str, request: GenerateRequest | LabelRequest) -> Sequence[Any]:
    [(_, found)] = group.map(phase, method, {"the first question": request})
    return found
