"""Answers of a feedback model of one's own (`feedback.model`), called in the driver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from cai_dist.errors import CaiError, ConfigError, one_line
from cai_dist.registry import NoAnswer, Signature, call_within, find_object
from cai_dist.stages.ai_feedback.questions import Question, Reply, Unanswered
from cai_dist.stages.context import RunContext
from cai_dist.types import FeedbackScorer

KEY = "feedback.model"
SIGNATURE = Signature(("questions", "options"))


def own_model(path: str) -> FeedbackScorer:
    """The object that `path` names; of a class, one that is made without arguments. Raises ConfigError."""
    found = find_object(path, KEY)
    if isinstance(found, type):
        try:
            found = found()
        except Exception as error:
            raise ConfigError(f"{KEY}={path}: cannot be made without arguments: {one_line(error)}") from error
    if problem := SIGNATURE.problem(found):
        raise ConfigError(f"{KEY}={path}: {problem}")
    model: FeedbackScorer = found
    return model


def ask_own(ctx: RunContext, questions: Sequence[Question]) -> list[Reply]:
    """Answers of the run's own feedback model, one a question, in order, `feedback.shard_size` at a time, each call
    within `cluster.timeouts.call`. Nothing is kept: an interrupted stage asks again. Raises Interrupted, ConfigError,
    and CaiError for answers that do not fit or do not come."""
    config = ctx.config.feedback
    assert config.model is not None
    model, where = own_model(config.model), f"{KEY}={config.model}"
    longest, replies = ctx.config.cluster.timeouts.call, list[Reply]()
    for start in range(0, len(questions), config.shard_size):
        ctx.check_stop()
        asked = questions[start : start + config.shard_size]
        try:
            turns = [question.turns for question in asked]
            found = list(call_within(longest, partial(model, turns, config.option_labels)))
        except NoAnswer:
            raise CaiError(f"{where}: no answer within cluster.timeouts.call={longest:g} s") from None
        except Exception as error:
            raise CaiError(f"{where}: {one_line(error)}") from error
        if len(found) != len(asked):
            raise CaiError(f"{where}: gave {len(found)} answers to {len(asked)} questions")
        replies += [_reply(where, question, answer) for question, answer in zip(asked, found, strict=True)]
    return replies


def _reply(where: str, question: Question, answer: Any) -> Reply:
    if answer is None:
        return Unanswered.NO_LABEL
    try:
        first, second = (float(number) for number in answer)
    except (TypeError, ValueError):
        raise CaiError(f"{where}: question {question.key}: two log-probabilities or None, not {answer!r}") from None
    if any(math.isnan(number) or number > 1e-6 for number in (first, second)):
        raise CaiError(f"{where}: question {question.key}: {(first, second)} are no log-probabilities (0 at most)")
    return first, second
