"""Pairwise judgements between models and the Elo that follows from them (as in 2204.05862): harmlessness over
red-team prompts, helpfulness over helpful ones, base being 0."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from cai_dist.config.seeds import stable_seed
from cai_dist.constitution.draws import draw_some
from cai_dist.data.prompts import opening
from cai_dist.losses.elo import EloMatch, elo_ratings
from cai_dist.stages.ai_feedback import labelling
from cai_dist.stages.ai_feedback.labelling import PairLabel, label_pairs
from cai_dist.stages.context import RunContext
from cai_dist.stages.evaluation.judges import Judge, on_the_world
from cai_dist.stages.execution.reuse import reuse_from
from cai_dist.stages.tables.records import Sampled
from cai_dist.types import Comparison, PromptKind

if TYPE_CHECKING:
    from cai_dist.cluster.work_queue import WorkQueue

ANCHOR = "base"
KINDS: dict[str, PromptKind] = {"harmlessness": "red_team", "helpfulness": "helpful"}
"""What is rated, and on which prompts."""
EloJudge = Literal["oracle", "feedback", "preference", "none"]


@dataclass(frozen=True)
class Match:
    """The answers of two models to one prompt, the first one's being A."""

    first: str
    second: str
    pair: Comparison


def elo_judge(ctx: RunContext) -> EloJudge:
    """`evaluate.elo.judge` without `auto`."""
    judge = ctx.config.evaluate.elo.judge
    if judge == "auto":
        return "oracle" if on_the_world(ctx) else "feedback"
    return judge


def matches(samples: Mapping[str, Sequence[Sampled]], kind: PromptKind, prompts: int | None = None) -> list[Match]:
    """Every two models on each of the first `prompts` prompts of a kind: the k-th answer of one against the k-th of the
    other."""
    answers: dict[str, dict[str, list[Sampled]]] = defaultdict(lambda: defaultdict(list))
    for model, sampled in samples.items():
        for s in sampled:
            if s.prompt.kind == kind:
                answers[s.prompt.id][model].append(s)
    return [
        Match(one, other, Comparison(a.prompt, a.response, b.response, 0.5, "ai"))
        for said in list(answers.values())[:prompts]
        for one, other in combinations(said, 2)
        for a, b in zip(said[one], said[other], strict=False)
    ]


def feedback_shares(ctx: RunContext, group: WorkQueue, folder: Path, found: Sequence[Match]) -> list[float | None]:
    """What the feedback model says: p(A), in both orders and averaged over the principles; None where a question has no
    answer. Not clamped, as labels to learn from are: shares of a win near one half would be no ratings. Answers that
    are the same are a tie, about which it is not asked."""
    different = [m.pair for m in found if m.pair.response_a != m.pair.response_b]
    principles = [principle_ids(ctx, pair) for pair in different]
    provenance = {
        "pairs": [[[asdict(t) for t in p.prompt.turns], p.response_a, p.response_b] for p in different],
        "principles": principles,
        "constitution": ctx.constitution.sha256,
        "seed": ctx.config.seed,
        "models": ctx.manifest.hashes(labelling.inputs(ctx)),
        **labelling.settings(ctx.config),
    }
    reuse_from(ctx, folder, "elo", provenance)
    shares = [_share(x) for x in label_pairs(ctx, group, folder, "elo", different, principles)]
    if ctx.config.feedback.orders == "one":
        turned = [Comparison(p.prompt, p.response_b, p.response_a, 0.5, "ai") for p in different]
        other = [_share(x) for x in label_pairs(ctx, group, folder, "elo-turned", turned, principles)]
        shares = [None if a is None or b is None else (a + 1.0 - b) / 2 for a, b in zip(shares, other, strict=True)]
    given = iter(shares)
    return [0.5 if m.pair.response_a == m.pair.response_b else next(given) for m in found]


def _share(label: PairLabel | None) -> float | None:
    return None if label is None else fmean((*label.first, *label.second))


def principle_ids(ctx: RunContext, pair: Comparison) -> list[str]:
    """The principles that the feedback model is asked under about answers to this prompt."""
    names = [p.id for p in ctx.constitution.comparison_principles[: ctx.config.feedback.principles]]
    wanted = ctx.config.evaluate.elo.principles or len(names)
    return [names[i] for i in sorted(draw_some(ctx.config.seed, "elo", pair.prompt.id, n=len(names), k=wanted))]


def judged_shares(judge: Judge, found: Sequence[Match]) -> list[float | None]:
    """What the oracle or a reward says."""
    return list(judge.prefers([m.pair for m in found]))


def rate(ctx: RunContext, what: str, found: Sequence[Match], shares: Sequence[float | None]) -> dict[str, Any] | None:
    """Elo of every model, and who won how often against whom; None where models cannot be compared.

    Returns: `models` (figures, base 0; with the prior of `losses/elo.py`) and, without it, `wins` (`first`, `second`,
        the `share` of a win that the first had over the second, over `n` judgements).
    """
    known = [(m, s) for m, s in zip(found, shares, strict=True) if s is not None]
    meetings = [EloMatch(opening(m.pair.prompt), m.first, m.second, s) for m, s in known]
    seed = stable_seed(ctx.config.seed, "elo", what) % 2**32
    try:
        ratings = elo_ratings(meetings, ANCHOR, ctx.config.evaluate.elo.resamples, seed)
    except ValueError as error:
        ctx.console.warn(f"no Elo of {what}: {error}")
        return None
    won: dict[tuple[str, str], list[float]] = defaultdict(list)
    for meeting in meetings:
        won[meeting.first, meeting.second].append(meeting.share)
    return {
        "models": {
            name: {"value": r.value, "low": r.low, "high": r.high, "n": ratings.prompts}
            for name, r in ratings.players.items()
        },
        "wins": [
            {"first": one, "second": other, "share": fmean(shares), "n": len(shares)}
            for (one, other), shares in won.items()
        ],
    }


def frontier(elo: Mapping[str, Any], iterations: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """Each model's `harmlessness` and `helpfulness`, with the iteration of PPO that it is from: base (none), SL-CAI
    (0), the snapshots, the aligned model."""
    points = []
    for model, iteration in iterations.items():
        both = [elo.get(what, {}).get(model) for what in KINDS]
        if all(both):
            values = {what: figure["value"] for what, figure in zip(KINDS, both, strict=True)}
            points.append({"model": model, "iteration": iteration, **values})
    return points
