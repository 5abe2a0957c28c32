"""The comparisons that a stage learns from, and how it does on held-out ones: shared by `preference` and `dpo`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

from cai_dist.config.seeds import stable_seed
from cai_dist.data.chat import ChatFormat
from cai_dist.data.dialogues import conversation_id
from cai_dist.errors import DataError
from cai_dist.losses.calibration import expected_calibration_error, same_side
from cai_dist.losses.temperature import sigmoid
from cai_dist.stages.context import RunContext
from cai_dist.stages.tables.intervals import pooled_proportion
from cai_dist.stages.tables.records import read_comparisons
from cai_dist.types import Comparison, Prompt, ScoredPair


def ai_comparisons(ctx: RunContext, split: str) -> list[Comparison]:
    """The AI's comparisons of answers to prompts of `split`."""
    found = read_comparisons(ctx.paths.comparisons)
    return [x.comparison for x in found if x.comparison.prompt.split == split]


def human_comparisons(ctx: RunContext, split: str) -> list[Comparison]:
    """The comparisons of people, those to learn from (`train`) or those set aside (`heldout`)."""
    found = (x.comparison for x in read_comparisons(ctx.paths.human))
    return [c for c in found if c.prompt.split == split]


def training_pairs(ctx: RunContext, stage: str, chat: ChatFormat, helpful_fraction: float) -> list[ScoredPair]:
    """AI comparisons of training prompts mixed with human ones, as token ids; those with a side longer than the context
    are left out and counted in the metrics of `STAGE_data`. Raises DataError."""
    return token_pairs(ctx, stage, chat, training_comparisons(ctx, stage, helpful_fraction))


def training_comparisons(
    ctx: RunContext, stage: str, helpful_fraction: float, label_fraction: float = 1.0
) -> list[Comparison]:
    """`label_fraction` of the AI comparisons of training prompts (drawn by the run's seed), mixed with human ones.
    Raises DataError."""
    ai, seed = ai_comparisons(ctx, "train"), ctx.config.seed
    if label_fraction < 1.0:
        drawn = sorted(range(len(ai)), key=lambda i: stable_seed(seed, "label fraction", i))
        ai = [ai[i] for i in sorted(drawn[: max(1, round(len(ai) * label_fraction))])]
    return mix(ai, human_comparisons(ctx, "train"), helpful_fraction, seed, stage)


def disjoint_halves(comparisons: Sequence[Comparison], seed: int) -> tuple[list[Comparison], list[Comparison]]:
    """Two halves that share no conversation, of each source about as many comparisons: conversations in drawn order,
    each with all its comparisons, of either source, to the half that has fewer of these. The order within a half is
    that of the whole."""
    # By the turns: the id of a prompt also holds its kind, and people and the AI may compare answers to the same one.
    names = [conversation_id(c.prompt.turns, "helpful") for c in comparisons]
    sizes: dict[str, Counter[str]] = {name: Counter() for name in names}
    for name, c in zip(names, comparisons, strict=True):
        sizes[name][c.source] += 1
    side: dict[str, int] = {}
    ahead: Counter[str] = Counter()
    """Of each source: how many comparisons more the first half has."""
    for name in sorted(sizes, key=lambda name: (stable_seed(seed, "half", name), name)):
        side[name] = int(sum(ahead[source] * n for source, n in sizes[name].items()) > 0)
        for source, n in sizes[name].items():
            ahead[source] += -n if side[name] else n
    first, second = ([c for n, c in zip(names, comparisons, strict=True) if side[n] == half] for half in (0, 1))
    return first, second


def token_pairs(ctx: RunContext, stage: str, chat: ChatFormat, mixture: Sequence[Comparison]) -> list[ScoredPair]:
    """The comparisons as token ids, without those that have a side longer than the context; counts in `STAGE_data`."""
    kept = fitting([scored_pair(chat, c) for c in mixture], ctx.config.models.context)
    ctx.tracker.rewind(f"{stage}_data", -1)
    ctx.log(f"{stage}_data", 0, pairs=len(kept), too_long=len(mixture) - len(kept))
    return kept


def mix(
    ai: Sequence[Comparison], human: Sequence[Comparison], fraction: float, seed: int, stage: str
) -> list[Comparison]:
    """All AI comparisons and as many human ones as make `fraction` of the whole, drawn without replacement.

    Raises DataError where there are too few human comparisons (none at all are needed for fraction 0).
    """
    if not ai:
        raise DataError(f"{stage}: no AI comparison on a training prompt; stage feedback left none")
    wanted = round(len(ai) * fraction / (1.0 - fraction))
    if wanted > len(human):
        raise DataError(
            f"{stage}.helpful_fraction={fraction} asks for {wanted} human comparisons beside {len(ai)} AI ones, but "
            f"there are {len(human)}; lower it or give more in data.helpful_comparisons"
        )
    order = sorted(range(len(human)), key=lambda i: stable_seed(seed, "human", i))
    return [*ai, *(human[i] for i in order[:wanted])]


def scored_pair(chat: ChatFormat, c: Comparison) -> ScoredPair:
    """A comparison as token ids, both sides: the whole conversation, the answer, the end token."""
    a, b = (chat.example(c.prompt.turns, r).ids for r in (c.response_a, c.response_b))
    return ScoredPair(a, b, c.p_a, c.source, len(chat.prompt_ids(c.prompt.turns)))


def fitting(pairs: Sequence[ScoredPair], context: int) -> list[ScoredPair]:
    """The pairs of which both sides have at most `context` tokens."""
    return [p for p in pairs if max(len(p.ids_a), len(p.ids_b)) <= context]


def decided(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons whose label is no tie."""
    return [c for c in comparisons if c.p_a != 0.5]


def log_heldout(
    ctx: RunContext,
    stage: str,
    scores: Sequence[tuple[float, float]],
    p_a: Sequence[float],
    prompts: Sequence[Prompt] = (),
) -> dict[str, Any]:
    """How scores of both sides agree with labels p(A) other than 1/2, also as metrics of `STAGE_heldout`.

    Returns: `n`; `accuracy`, how often sigma(score of A - score of B) is on the label's side of one half (scores that
        are the same count 1/2, as in training), with its 95% interval `low`..`high` over `prompts` (their number)
        where the prompt of each pair is given; `ece`, its calibration against the label itself (a probability, as in
        training); `mean_score` over all sides.
    """
    if not p_a:
        return {"n": 0, "accuracy": None, "ece": None, "mean_score": 0.0}
    margins = [a - b for a, b in scores]
    chance = [sigmoid(m) for m in margins]
    right = [same_side(m, p - 0.5) for m, p in zip(margins, p_a, strict=True)]
    numbers: dict[str, float | int | None] = {
        "n": len(p_a),
        "accuracy": fmean(right),
        "ece": expected_calibration_error(chance, p_a),
        "mean_score": sum(s for pair in scores for s in pair) / (2 * len(p_a)),
    }
    if prompts:
        figure = pooled_proportion(zip(prompts, right, strict=True))
        numbers |= {"prompts": figure["n"], "low": figure["low"], "high": figure["high"]}
    ctx.tracker.rewind(f"{stage}_heldout", -1)
    ctx.log(f"{stage}_heldout", 0, **numbers)  # type: ignore[arg-type]
    return numbers


def heldout(ctx: RunContext, stage: Literal["preference", "dpo"]) -> dict[str, Any]:
    """What `STAGE/heldout.json` holds: the result of `log_heldout`."""
    return dict(json.loads(ctx.paths.heldout(stage).read_text(encoding="utf-8")))
