"""The questions that are put to the feedback model, what comes back, and the reading of its reasoning."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum

from cai_dist.config.feedback import FeedbackConfig
from cai_dist.constitution import Labels, clean_answer
from cai_dist.stages.ai_feedback.option_words import AS_OPTION
from cai_dist.types import Turn


class Unanswered(StrEnum):
    """Why a question has no answer. Its pair has no label then; stages count these."""

    TOO_LONG = "too_long"
    """No room in `models.context`, or in that of the server's model."""
    NO_REASONING = "no_reasoning"
    """The reasoning was empty or a loop, after all retries."""
    NO_LABEL = "no_label"
    """The answer names neither option, or both with less probability than `feedback.min_option_mass`."""
    REFUSED = "refused"
    """The server will not answer this question, such as for a filter of what it is about."""
    FAILED = "failed"
    """The server answers others, but never gives this question an answer of use (`feedback.endpoint.max_failed`)."""


LONGEST = 100_000
"""Characters of reasoning that are looked at; no `max_new_tokens` allows for more."""
LogProbs = tuple[float, ...]
"""Of the two options, in nats; -inf for one that a server does not name among its alternatives."""
Reply = LogProbs | Unanswered


def option_mass(logprobs: LogProbs) -> float:
    """Probability that the answer names one of the two options: near 1 where the model does what it is asked. Near 0
    their ratio is one of accidents."""
    return sum(map(math.exp, logprobs))


def with_mass(reply: Reply, least: float) -> Reply:
    """`reply`, or NO_LABEL where the options have a mass below `least`, or a number that is none."""
    if isinstance(reply, Unanswered):
        return reply
    return reply if option_mass(reply) >= least and max(reply) > -math.inf else Unanswered.NO_LABEL


@dataclass(frozen=True)
class Question:
    """One multiple-choice question; `key` names it in the files of its phase."""

    key: str
    turns: tuple[Turn, ...]


def usable_reasoning(config: FeedbackConfig, labels: Labels, text: str) -> str | None:
    """The reasoning in what the model wrote after `reasoning.opening`, or None where it is empty or a loop.

    It ends where the model itself says `reasoning.closing` (the colon may be missing before an option label), and where
    it starts to play another part (`labels` are those of the parts).
    """
    reasoning = config.reasoning
    assert reasoning is not None
    text = text.strip()[:LONGEST].removeprefix(reasoning.opening)
    if reasoning.closing.strip():
        pattern = _words(reasoning.closing)
        if bare := _words(reasoning.closing.rstrip(" :")):
            options = "|".join(re.escape(label.strip()) for label in config.option_labels)
            # Never two runs of white space side by side: these take quadratic time where it is long. And a letter is an
            # option as it is written and where no word follows: "the answer is a matter of taste" goes on.
            pattern += rf"|{bare}(?:\s*:)?\s*(?-i:{options}){AS_OPTION}"
        if found := re.search(pattern, text, re.IGNORECASE):
            text = text[: found.start()]
    return clean_answer(text, labels).text


def _words(text: str) -> str:
    """A pattern of the words of `text`, however they are spaced."""
    return r"\s+".join(map(re.escape, text.split()))


def reasoned(opening: str, reasoning: str, closing: str) -> str:
    """The answer as it stands before the option label."""
    thoughts = f"{opening} {reasoning}" if opening else reasoning
    return f"{thoughts}\n\n{closing}" if closing else thoughts
