"""Settings of `feedback` that are fine alone and wrong together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from cai_dist.config.run import RunConfig


def feedback_problems(config: RunConfig) -> Iterator[str]:
    """One line for each problem."""
    feedback, models = config.feedback, config.models
    for role in ("assistant", "pretrained"):
        if getattr(models, role) == "sl":
            yield f"models.{role}=sl: SL-CAI is made from it; only models.feedback can be sl"
    if feedback.principles is not None and feedback.per_pair > feedback.principles:
        yield f"feedback.per_pair={feedback.per_pair}: must be at most feedback.principles={feedback.principles}"
    if feedback.reasoning is not None:
        yield from _reasoning_problems(config)
    if feedback.endpoint is not None:
        yield from _endpoint_problems(config)
    if feedback.model is not None and feedback.endpoint is not None:
        yield f"feedback.model={feedback.model}: beside feedback.endpoint; leave one of them out"
    if feedback.model is not None and feedback.reasoning is not None:
        yield f"feedback.reasoning: leave it out; feedback.model={feedback.model} answers as it likes"


def _reasoning_problems(config: RunConfig) -> Iterator[str]:
    feedback, reasoning = config.feedback, config.feedback.reasoning
    assert reasoning is not None
    if feedback.form == "text":
        yield "feedback.form=text: with feedback.reasoning the question is a human's turn; set feedback.form=chat"
    if feedback.few_shot:
        yield (
            f"feedback.few_shot={feedback.few_shot}: worked comparisons without reasoning, which feedback.reasoning "
            "does not show; set it to 0 and feedback.reasoning.few_shot instead"
        )
    new, context = reasoning.sampling.max_new_tokens, config.models.context
    if feedback.endpoint is None and new >= context:
        yield (
            f"feedback.reasoning.sampling.max_new_tokens={new}: leaves no room for a question; must be smaller than "
            f"models.context={context}"
        )


def _endpoint_problems(config: RunConfig) -> Iterator[str]:
    feedback, endpoint = config.feedback, config.feedback.endpoint
    assert endpoint is not None
    try:
        url = urlsplit(endpoint.url)
        if "@" in url.netloc or not url.hostname or url.port == 0 or url.query or url.fragment:
            raise ValueError
    except ValueError:
        # Not shown: it may hold a password.
        yield (
            "feedback.endpoint.url: must be of the form http://host:port/v1, without name, password or query; a key "
            "goes into the environment variable that feedback.endpoint.api_key_env names"
        )
    if feedback.prefill:
        yield f"feedback.prefill={feedback.prefill!r}: a server's answer cannot be opened for it; leave it out"
    if feedback.form == "text":
        yield "feedback.form=text: a server has a chat interface; set feedback.form=chat"
    if feedback.reasoning is not None and not feedback.reasoning.closing.strip():
        yield "feedback.reasoning.closing: must not be empty with feedback.endpoint, whom it asks for the option"
    a, b = (re.sub(r"[\W_]+", "", label) for label in feedback.option_labels)
    if not a or not b or a.startswith(b) or b.startswith(a):
        yield (
            f"feedback.option_labels={list(feedback.option_labels)}: with feedback.endpoint they must differ in "
            "letters or digits, and none may begin with the other"
        )
