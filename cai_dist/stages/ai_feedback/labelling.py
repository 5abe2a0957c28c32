"""What the feedback model says about two answers: the label p(A) of each pair (2212.08073, section 4.1).

Every question is asked under each given principle and in both orders of the answers (`feedback.orders`). Whether a
model of this run answers, with or without reasoning, or a server, callers need not know.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cai_dist.config.feedback import FeedbackConfig
from cai_dist.config.run import RunConfig
from cai_dist.config.seeds import stable_seed
from cai_dist.constitution import ComparisonPrinciple, Constitution, comparison_turns, reasoning_turns
from cai_dist.errors import ConfigError
from cai_dist.registry import source_note
from cai_dist.stages.ai_feedback.local_check import said_locally
from cai_dist.stages.ai_feedback.local_model import ask_workers
from cai_dist.stages.ai_feedback.own_model import KEY, ask_own
from cai_dist.stages.ai_feedback.questions import LogProbs, Question, Reply, Unanswered, option_mass, with_mass
from cai_dist.stages.ai_feedback.server_model import ask_server, seen_at_server
from cai_dist.stages.context import RunContext, model_settings
from cai_dist.stages.execution.model_paths import model_path
from cai_dist.types import Comparison, Turn

if TYPE_CHECKING:
    from cai_dist.cluster.work_queue import WorkQueue


FIRST = 32
"""Questions that are asked before all others."""
NEARLY_ALL = 0.9


@dataclass(frozen=True)
class PairLabel:
    """What came of one pair."""

    p: float
    """p(A): the mean over principles and orders, clamped where the feedback reasons."""
    first: tuple[float, ...]
    """p(A) asked in the order (A, B), under each principle."""
    second: tuple[float, ...]
    """p(A) asked in the order (B, A), under each principle; empty where one order alone is asked."""
    mass: tuple[float, ...] = ()
    """Probability of both options together, under each principle: the mean over the orders."""

    def under(self, k: int) -> float:
        """p(A) under the k-th principle: the mean over the orders asked."""
        return (self.first[k] + self.second[k]) / 2 if self.second else self.first[k]


@dataclass(frozen=True)
class PairAnswers:
    """What came of all pairs."""

    labels: tuple[PairLabel | None, ...]
    """In the order of the pairs; None where one of a pair's questions has no answer."""
    option_mass: float
    """Mean over all questions with log-probabilities, those below `feedback.min_option_mass` too; NaN without any."""


def settings(config: RunConfig) -> dict[str, Any]:
    """The settings that decide a label, for the fingerprint of every stage that asks for some."""
    kept = {
        "orders", "few_shot", "temperature", "form", "reasoning", "prefill", "option_labels", "min_option_mass",
        "shard_size",
    }  # fmt: skip
    found = config.feedback.model_dump(mode="json", include=kept)
    if (server := config.feedback.endpoint) is not None:
        deciding = {"url", "model", "top_logprobs", "min_temperature", "api_version", "extra_body"}
        found["endpoint"] = server.model_dump(mode="json", include=deciding)
    if (model := config.feedback.model) is not None:
        found["model"] = source_note(model, KEY)
    return {"labelling": found, **model_settings(config)}


def inputs(ctx: RunContext) -> list[Path]:
    """What the feedback model is read from."""
    own = [ctx.paths.sl_model] if ctx.config.feedback_is_sl else []
    return [ctx.paths.models, *own]


def label_pairs(
    ctx: RunContext,
    group: WorkQueue | None,
    folder: Path,
    phase: str,
    pairs: Sequence[Comparison],
    principle_ids: Sequence[Sequence[str]],
) -> list[PairLabel | None]:
    """The labels of `pair_answers` alone."""
    return list(pair_answers(ctx, group, folder, phase, pairs, principle_ids).labels)


def pair_answers(
    ctx: RunContext,
    group: WorkQueue | None,
    folder: Path,
    phase: str,
    pairs: Sequence[Comparison],
    principle_ids: Sequence[Sequence[str]],
) -> PairAnswers:
    """The label of each pair (whose own `p_a` and `principle_id` are not looked at) under the principles with the ids
    `principle_ids[i]`.

    `group`: rollout workers (`run.generators`); None will do where `feedback.endpoint` is set. What is answered stays
    in `folder/phase…` (a server's answers in `endpoint/` of the run): an interrupted call goes on where it was. How
    many questions had no answer, and why, and the mean mass of the options are logged as `FOLDER_PHASE`. Raises
    Interrupted, ConfigError, EndpointError.
    """
    config = ctx.config.feedback
    questions = _questions(ctx, pairs, principle_ids)
    given = _ask(ctx, group, folder, phase, questions)
    masses = [option_mass(r) for r in given if not isinstance(r, Unanswered)]
    replies = iter([with_mass(r, config.min_option_mass) for r in given])
    counts = dict.fromkeys(Unanswered, 0)
    labels: list[PairLabel | None] = []
    for ids in principle_ids:
        own = [next(replies) for _ in ids for _ in _orders(config) for _ in _chains(config)]
        for reason in (r for r in own if isinstance(r, Unanswered)):
            counts[reason] += 1
        labels.append(pair_label(config, own))
    series = f"{folder.name}_{phase}"
    found = {"option_mass": fmean(masses)} if masses else {}
    ctx.tracker.rewind(series, -1)
    ctx.log(series, 0, questions=len(questions), **{str(reason): n for reason, n in counts.items()}, **found)
    return PairAnswers(tuple(labels), found.get("option_mass", math.nan))


def refuse_noise(
    ctx: RunContext,
    group: WorkQueue | None,
    folder: Path,
    pairs: Sequence[Comparison],
    principle_ids: Sequence[Sequence[str]],
) -> None:
    """Where there are more than `FIRST` questions, ask so many alone and refuse a feedback model that names no option,
    or both with a mass below `feedback.min_option_mass`, in nearly all of its answers. Files of the phase
    `first-labels` stay in `folder`. Raises ConfigError, EndpointError, Interrupted."""
    config, questions = ctx.config.feedback, _questions(ctx, pairs[: FIRST + 1], principle_ids[: FIRST + 1])
    if len(questions) <= FIRST:
        return  # they are all asked at once
    questions = questions[:FIRST]
    replies = [with_mass(r, config.min_option_mass) for r in _ask(ctx, group, folder, "first-labels", questions)]
    unnamed = [q for q, r in zip(questions, replies, strict=True) if r is Unanswered.NO_LABEL]
    if unnamed and len(unnamed) >= NEARLY_ALL * len(questions):
        if config.model is not None:
            said = f"feedback.model={config.model} answers None, or gives both options too little probability"
        elif group is None or config.endpoint is not None:
            said = seen_at_server(ctx, "first-labels", unnamed[0])
        else:
            model = model_path(ctx, "feedback")
            said = said_locally(ctx, group, folder, "first-labels-seen", unnamed[0], model)
        raise ConfigError(f"feedback: {len(unnamed)} of the first {len(questions)} questions have no label; {said}")


def pair_questions(
    config: FeedbackConfig,
    constitution: Constitution,
    seed: int,
    number: int,
    pair: Comparison,
    principles: Sequence[ComparisonPrinciple],
) -> list[Question]:
    """The questions about one pair: under each principle, in each order of the answers, for each chain of thought.

    `number` is the pair's in its phase: it names the questions and draws, with the run's `seed`, the worked examples
    that they show. `pair_label` reads the replies.
    """
    return [
        Question(
            f"{number}/{k}/{int(swapped)}" + (f"/{chain}" if chain else ""),
            _turns(config, constitution, stable_seed(seed, "few shot", number), pair, principle, swapped),
        )
        for k, principle in enumerate(principles)
        for swapped in _orders(config)
        for chain in _chains(config)
    ]


def pair_label(config: FeedbackConfig, replies: Sequence[Reply]) -> PairLabel | None:
    """The label of one pair from the replies to its `pair_questions`, in their order; None where a question has no
    answer under one of the principles, in one of the orders."""
    orders, chains = len(_orders(config)), len(_chains(config))
    said = [_said(config, replies[i : i + chains]) for i in range(0, len(replies), chains)]
    answered = [x for x in said if x is not None]
    if len(answered) < len(said):
        return None
    return _label(config, [answered[i : i + orders] for i in range(0, len(answered), orders)])


def first_option(logprobs: LogProbs, temperature: float = 1.0) -> float:
    """Probability of the first of two options from their log-probabilities (nats), divided by `temperature` and
    normalised over the two. One of them may be -inf."""
    a, b = logprobs
    if a == b:
        return 0.5
    return 1.0 / (1.0 + math.exp(min(700.0, (b - a) / temperature)))


@dataclass(frozen=True)
class _Said:
    """What a question came to: the means over its chains of thought."""

    first: float
    """Probability of the option that stands first."""
    mass: float
    """Of both options together."""


def _said(config: FeedbackConfig, chains: Sequence[Reply]) -> _Said | None:
    """From the answer behind each chain of thought (one, without reasoning); None where none has an answer."""
    found = [r for r in chains if not isinstance(r, Unanswered)]
    if not found:
        return None
    return _Said(fmean(first_option(r, config.temperature) for r in found), fmean(map(option_mass, found)))


def _label(config: FeedbackConfig, asked: Sequence[Sequence[_Said]]) -> PairLabel:
    """From the answers under each principle, in each order."""
    first = tuple(one[0].first for one in asked)
    second = tuple(1.0 - one[1].first for one in asked) if config.orders == "both" else ()
    p = fmean([*first, *second])
    if config.reasoning is not None and config.reasoning.clamp is not None:
        low, high = config.reasoning.clamp
        p = min(max(p, low), high)
    return PairLabel(p, first, second, tuple(fmean(said.mass for said in one) for one in asked))


def _orders(config: FeedbackConfig) -> tuple[bool, ...]:
    """Whether the answers of a pair change places, for each time that it is asked about."""
    return (False, True) if config.orders == "both" else (False,)


def _chains(config: FeedbackConfig) -> range:
    """The chains of thought about each question in each order; one, without reasoning."""
    return range(config.reasoning.chains if config.reasoning is not None else 1)


def _questions(ctx: RunContext, pairs: Sequence[Comparison], principle_ids: Sequence[Sequence[str]]) -> list[Question]:
    known = {p.id: p for p in ctx.constitution.comparison_principles}
    config, constitution, seed = ctx.config.feedback, ctx.constitution, ctx.config.seed
    return [
        question
        for i, (pair, ids) in enumerate(zip(pairs, principle_ids, strict=True))
        for question in pair_questions(config, constitution, seed, i, pair, [known[name] for name in ids])
    ]


def _turns(
    config: FeedbackConfig,
    constitution: Constitution,
    seed: int,
    pair: Comparison,
    principle: ComparisonPrinciple,
    swapped: bool,
) -> tuple[Turn, ...]:
    """The question about a pair, after the worked examples that `seed` draws."""
    a, b = (pair.response_b, pair.response_a) if swapped else (pair.response_a, pair.response_b)
    if config.reasoning is not None:
        return reasoning_turns(constitution, pair.prompt.turns, principle, a, b, config.reasoning.few_shot, seed)
    shown = (config.prefill + config.option_labels[0], config.prefill + config.option_labels[1])
    return comparison_turns(constitution, pair.prompt.turns, principle, a, b, config.few_shot, seed, shown)


def _ask(
    ctx: RunContext, group: WorkQueue | None, folder: Path, phase: str, questions: Sequence[Question]
) -> list[Reply]:
    if ctx.config.feedback.endpoint is not None:
        return ask_server(ctx, phase, questions)
    if ctx.config.feedback.model is not None:
        return ask_own(ctx, questions)
    if group is None:
        raise ValueError("label_pairs needs workers unless feedback.endpoint is set")
    return ask_workers(ctx, group, folder, phase, questions, model_path(ctx, "feedback"))
