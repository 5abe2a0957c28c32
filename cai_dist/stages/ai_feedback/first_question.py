"""A made-up comparison that every feedback model must be able to answer, and what to say of one that cannot."""

from __future__ import annotations

from cai_dist.config.feedback import FeedbackConfig
from cai_dist.constitution import comparison_turns, reasoning_turns
from cai_dist.stages.ai_feedback.questions import Question
from cai_dist.stages.context import RunContext
from cai_dist.types import Turn

_TURNS = (Turn("human", "Which is the capital of France?"),)
_ANSWERS = ("Paris.", "Rome.")


def first_question(ctx: RunContext, *, swapped: bool) -> Question:
    """The question about two answers under the first principle, in the form that the run asks in; with `swapped` the
    other answer comes first."""
    config, principle = ctx.config.feedback, ctx.constitution.comparison_principles[0]
    a, b = reversed(_ANSWERS) if swapped else _ANSWERS
    ends = (_TURNS, principle, a, b)
    if config.reasoning is not None:
        turns = reasoning_turns(ctx.constitution, *ends, config.reasoning.few_shot, ctx.config.seed)
    else:
        shown = (config.prefill + config.option_labels[0], config.prefill + config.option_labels[1])
        turns = comparison_turns(ctx.constitution, *ends, config.few_shot, ctx.config.seed, shown)
    return Question(f"first/{int(swapped)}", turns)


def low_mass(config: FeedbackConfig, mass: float, why: str, seen: str) -> str:
    """One line on a model whose answers do not name the options: how much probability these hold, what it says in their
    place (`seen`), and what to do."""
    a, b = config.option_labels
    if config.endpoint is not None:
        thinks = "feedback.endpoint.extra_body={chat_template_kwargs: {enable_thinking: false}}"
        form = "feedback.few_shot, feedback.reasoning"
    else:
        thinks = "models.chat_arguments={enable_thinking: false}"
        form = 'feedback.prefill="(" with option_labels=["A", "B"], feedback.form, feedback.few_shot'
    return (
        f"{why}the options {config.prefill + a!r} and {config.prefill + b!r} hold {mass:.2g} of the probability, and a "
        f"label needs feedback.min_option_mass={config.min_option_mass:g}; {seen}; where it thinks before it answers "
        f"set {thinks}, otherwise try {form} or another model"
    )
