"""What models say of given texts, by the same workers that PPO uses: preference-model scores, log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cai_dist.data.chat import ChatFormat
from cai_dist.stages.context import RunContext
from cai_dist.stages.execution.worker_groups import reference_group, reward_group
from cai_dist.types import Generation, StepShard, Turn

CHUNK = 64
"""Answers per forward pass."""


def score_texts(
    ctx: RunContext, model: str, chat: ChatFormat, texts: Sequence[tuple[Sequence[Turn], str]], phase: str
) -> list[float]:
    """Raw score (logits) of each (conversation, answer), in order."""
    samples = [as_sample(chat, turns, answer) for turns, answer in texts]
    shards = _shards(samples)
    scores: dict[str, list[float]] = {}
    with (
        reward_group(ctx, model, chat.eos_id, ctx.config.evaluate.workers) as group,
        ctx.console.task(phase, total=len(samples), unit="answers") as task,
    ):
        for name, found in group.map(phase, "scores", shards):
            scores[name] = found
            task.advance(len(found))
    return [score for name in shards for score in scores[name]]


def answer_logprobs(
    ctx: RunContext, model: str, chat: ChatFormat, texts: Sequence[tuple[Sequence[Turn], str]], phase: str
) -> list[float]:
    """Log-probability (nats) under `model` of each (conversation, answer), end token included, in order."""
    samples = [as_sample(chat, turns, answer) for turns, answer in texts]
    shards = _shards(samples)
    with reference_group(ctx, model, ctx.config.evaluate.workers) as group:
        found = dict(group.map(phase, "response_logprobs", shards, 1.0))
    return [logprob for name in shards for logprob in found[name]]


def _shards(samples: Sequence[Generation]) -> dict[str, StepShard]:
    """Pieces of work, by what errors call them."""
    return {
        f"answers {i} to {min(i + CHUNK, len(samples)) - 1}": StepShard((tuple(samples[i : i + CHUNK]),))
        for i in range(0, len(samples), CHUNK)
    }


def as_sample(chat: ChatFormat, turns: Sequence[Turn], answer: str) -> Generation:
    """A given answer in the shape of a finished sample (no sampler made it: no log-probs)."""
    prompt = chat.prompt_ids(turns)
    ids = np.array(chat.example(turns, answer).ids, np.int32)
    return Generation(ids[: len(prompt)], ids[len(prompt) :], np.zeros(0, np.float32), "stop", 0)
