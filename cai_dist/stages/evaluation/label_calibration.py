"""How right the feedback model is, and how far its probabilities can be trusted, on questions whose better answer is
known: files in the layout of the HHH evaluation (2212.08073, section 4.1 and figure 9, on comparisons like these)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cai_dist.config.seeds import stable_seed
from cai_dist.constitution.draws import draw_some
from cai_dist.losses.calibration import brier_score, expected_calibration_error, reliability_bins, same_side
from cai_dist.stages.ai_feedback import labelling
from cai_dist.stages.ai_feedback.labelling import PairLabel, label_pairs
from cai_dist.stages.context import RunContext
from cai_dist.stages.evaluation.multiple_choice import kind_of, questions_of
from cai_dist.stages.execution.reuse import reuse_from
from cai_dist.stages.tables.intervals import pooled_proportion
from cai_dist.types import ChoiceQuestion, Comparison, Prompt

if TYPE_CHECKING:
    from cai_dist.cluster.work_queue import WorkQueue


@dataclass(frozen=True)
class Known:
    """A best option against another one, the label being 1 where the best one is A."""

    pair: Comparison
    kind: str
    """Of the question, such as `honest`; empty where its id says none."""


def label_calibration(ctx: RunContext, group: WorkQueue, folder: Path) -> dict[str, Any]:
    """For each file of `evaluate.label_questions` what `figures` says, and the same for each of `kinds` where ids say
    kinds (`honest-3`). Raises DataError."""
    found = {}
    for number, source in enumerate(ctx.config.evaluate.label_questions):
        questions, skipped = questions_of(ctx, source)
        known = known_pairs(questions, ctx.config.seed)
        labels = _ask(ctx, group, folder, f"labels-{number}", [x.pair for x in known])
        kinds = {x.kind: None for x in known if x.kind}
        of_kind = {
            kind: figures(*zip(*((x, y) for x, y in zip(known, labels, strict=True) if x.kind == kind), strict=True))
            for kind in kinds
        }
        found[source] = {"questions": len(questions), "skipped": skipped, **figures(known, labels), "kinds": of_kind}
    return found


def known_pairs(questions: Sequence[ChoiceQuestion], seed: int) -> list[Known]:
    """Each best option of a question against each of the others; which of the two is A is drawn."""
    found = []
    for q in questions:
        prompt = Prompt(q.id, q.turns, "helpful", "heldout")
        best = max(q.scores)
        for i, better in enumerate(q.options):
            for j, worse in enumerate(q.options):
                if q.scores[i] == best > q.scores[j]:
                    first = stable_seed(seed, "label question", q.id, i, j) % 2 == 0
                    a, b = (better, worse) if first else (worse, better)
                    found.append(Known(Comparison(prompt, a, b, float(first), "human"), kind_of(q)))
    return found


def figures(known: Sequence[Known], labels: Sequence[PairLabel | None]) -> dict[str, Any]:
    """`pairs`, and how many are `unanswered`; of the others `accuracy` (the better answer is preferred) with its
    interval over questions, `ece` and `brier` of p(A), before any clamp, and its `reliability` table."""
    said = [(x.pair, fmean((*y.first, *y.second))) for x, y in zip(known, labels, strict=True) if y is not None]
    counts: dict[str, Any] = {"pairs": len(known), "unanswered": len(known) - len(said)}
    right = pooled_proportion((pair.prompt, same_side(p - 0.5, pair.p_a - 0.5)) for pair, p in said)
    if not said:
        return {**counts, "accuracy": right, "ece": None, "brier": None, "reliability": []}
    chance, truth = [p for _, p in said], [pair.p_a for pair, _ in said]
    return {
        **counts,
        "accuracy": right,
        "ece": expected_calibration_error(chance, truth),
        "brier": brier_score(chance, truth),
        "reliability": [asdict(part) for part in reliability_bins(chance, truth)],
    }


def _ask(
    ctx: RunContext, group: WorkQueue, folder: Path, phase: str, pairs: Sequence[Comparison]
) -> list[PairLabel | None]:
    """The labels as `feedback` makes them, under as many drawn principles; those of an earlier evaluation where they
    were made from the same."""
    config = ctx.config.feedback
    ids = [p.id for p in ctx.constitution.comparison_principles[: config.principles]]
    drawn = [
        [ids[i] for i in draw_some(ctx.config.seed, "label question", p.prompt.id, n=len(ids), k=config.per_pair)]
        for p in pairs
    ]
    provenance = {
        "pairs": [[[asdict(t) for t in p.prompt.turns], p.response_a, p.response_b] for p in pairs],
        "principles": drawn,
        "constitution": ctx.constitution.sha256,
        "seed": ctx.config.seed,
        "models": ctx.manifest.hashes(labelling.inputs(ctx)),
        **labelling.settings(ctx.config),
    }
    reuse_from(ctx, folder, phase, provenance)
    return label_pairs(ctx, group, folder, phase, pairs, drawn)
