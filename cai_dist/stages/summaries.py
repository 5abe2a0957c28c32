"""What each stage tells on the terminal when it is done: one line with the figures that say how it went, and warnings
with what to do; and, for `feedback` and `preference`, why a run must not go on (`stages/evaluation/gate.py`).

Everything is read from what the stage has left in the run folder, so that it can be told again by a later command.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cai_dist.config.stages import DPO, EXPAND, FEEDBACK, PPO, PREFERENCE, SFT
from cai_dist.report.evaluation import MODELS
from cai_dist.stages.ai_feedback.statistics import agree
from cai_dist.stages.comparisons.pairs import heldout
from cai_dist.stages.context import RunContext
from cai_dist.stages.evaluation.gate import CHANCE, above, shown, stops, warns
from cai_dist.stages.tables.intervals import Figure, pooled_proportion
from cai_dist.stages.tables.prompts import KINDS, given_prompts, heldout_prompts
from cai_dist.stages.tables.records import Labelled, Revision, read_comparisons, read_revisions
from cai_dist.tracking.metrics import read_metrics

FEW_USABLE = 0.8
"""Share of usable texts below which a stage warns."""
FEW_CHANGED = 0.1
"""Share of first revisions that differ from the answer before, below which `revise` warns."""
LITTLE_MASS = 0.5
"""Mean probability of both options together below which `feedback` warns."""
FEW_STEPS = 10
"""Steps below which nothing is said of where a loss or a score went."""


@dataclass(frozen=True)
class StageSummary:
    """What a stage says of its result."""

    line: str
    """One line; empty: nothing to say."""
    warnings: tuple[str, ...] = ()


def told_prepare(ctx: RunContext) -> StageSummary:
    """How many prompts there are to learn from, and how many to measure with."""
    counts = [f"{len(given_prompts(ctx, kind))} {kind.replace('_', '-')}" for kind in KINDS]
    held_out = Counter(p.kind for p in heldout_prompts(ctx))
    return StageSummary(
        f"training prompts: {', '.join(counts)}; held out: "
        + ", ".join(f"{held_out[kind]} {kind.replace('_', '-')}" for kind in KINDS)
    )


def told_expand(ctx: RunContext) -> StageSummary:
    """How many prompts were written, from how many samples."""
    made = {kind: _last(ctx, series) for kind, series in (("red-team", EXPAND), ("helpful", f"{EXPAND}_helpful"))}
    return StageSummary(
        "; ".join(f"{x['prompts']} new {kind} prompts of {x['samples']} samples" for kind, x in made.items() if x)
    )


def told_revise(ctx: RunContext) -> StageSummary:
    """How many texts can be used, and how many first revisions changed the answer."""
    rows, helpful = read_revisions(ctx.paths.revisions), read_revisions(ctx.paths.helpful_answers)
    texts = [*rows, *helpful]
    usable = fmean(not r.failure for r in texts) if texts else 0.0
    changed = _changed(rows)
    rounds = max((r.round for r in rows), default=0)
    line = (
        f"{len({r.prompt.id for r in rows})} prompts in rounds 0 to {rounds} and {len(helpful)} helpful answers, "
        f"{usable:.0%} of the texts usable"
    ) + ("" if changed is None else f", {changed:.0%} of the first revisions change the answer")
    warnings = []
    if usable < FEW_USABLE:
        why = Counter(r.failure for r in texts if r.failure)
        warnings.append(
            f"{1 - usable:.0%} of the texts cannot be used ({', '.join(f'{k} {n}' for k, n in why.most_common())}): "
            "read revise/transcripts.md; too_long wants models.context, runaway another model or revise.retries"
        )
    if changed is not None and changed < FEW_CHANGED and ctx.config.revise.principles != 0:
        warnings.append(
            f"{changed:.0%} of the first revisions change the answer: the model does not do what it is asked for; read "
            "revise/transcripts.md, show worked dialogues (revise.few_shot) or take another models.assistant"
        )
    return StageSummary(line, tuple(warnings))


def told_sft(ctx: RunContext) -> StageSummary:
    """How the loss went, and how much was too long to learn from."""
    return _trained(ctx, SFT, "examples")


def told_feedback(ctx: RunContext) -> StageSummary:
    """How many pairs have a label, and whether it comes from the answers."""
    labelled = read_comparisons(ctx.paths.comparisons)
    counts: dict[str, Any] = {}
    for line in _lines(ctx, FEEDBACK):
        counts |= line
    made = counts.get("pairs", len(labelled))
    parts = [f"labels for {len(labelled)} of {made} pairs"]
    left_out = [f"{counts[name]} {what}" for name, what in _LEFT_OUT.items() if counts.get(name)]
    parts[0] += f" ({', '.join(left_out)} left out before)" if left_out else ""
    mass = counts.get("option_mass")
    if mass is not None:
        parts.append(f"option mass {mass:.2f}")
    agreement = order_agreement(labelled)
    parts.append(f"both orders agree on {shown(agreement)}" if agreement["n"] else "one order asked")
    confidence = fmean(abs(x.p_model - 0.5) + 0.5 for x in labelled)
    parts.append(f"mean confidence {confidence:.2f}")
    warnings = []
    if len(labelled) < FEW_USABLE * made:
        warnings.append(
            f"{made - len(labelled)} of {made} pairs have no label; feedback_labels in metrics.jsonl counts why"
        )
    if mass is not None and mass < LITTLE_MASS:
        warnings.append(
            f"the two options have {mass:.2f} of the probability together: the model would rather say something else; "
            "show worked comparisons (feedback.few_shot) or change feedback.prefill and option_labels"
        )
    if agreement["n"]:
        warnings += warns(FEEDBACK, _AGREE, agreement, ctx.config.feedback.gate)
    return StageSummary(", ".join(parts), tuple(warnings))


def gate_feedback(ctx: RunContext) -> list[str]:
    """Why nothing must be learned from the labels. Where one order was asked, nothing tells what the place does."""
    agreement = order_agreement(read_comparisons(ctx.paths.comparisons))
    return stops(FEEDBACK, _AGREE, agreement, ctx.config.feedback.gate) if agreement["n"] else []


def told_preference(ctx: RunContext) -> StageSummary:
    """How often the scores are on the label's side on pairs that nothing has learned from, for each source."""
    sources = heldout(ctx, PREFERENCE)["sources"]
    found = {source: _accuracy(sources.get(source)) for source in ("ai", "human")}
    parts = [f"held-out accuracy on the AI's labels {shown(found['ai'])}"]
    if "ai" in sources:
        parts.append(f"ECE {sources['ai']['ece']:.2f}")
    warnings = warns(PREFERENCE, _RIGHT, found["ai"], ctx.config.preference.gate)
    if "human" in sources:
        parts.append(f"on people's {shown(found['human'])}")
        if not above(found["human"], CHANCE) and ctx.config.preference.helpful_fraction > 0:
            warnings.append(
                f"held-out accuracy on people's labels is {shown(found['human'])}, no better than chance: give more of "
                "them (data.helpful_comparisons, preference.helpful_fraction) or more steps (preference.train)"
            )
    return StageSummary(", ".join(parts), tuple(warnings))


def gate_preference(ctx: RunContext) -> list[str]:
    """Why PPO must not learn from the scores."""
    figure = _accuracy(heldout(ctx, PREFERENCE)["sources"].get("ai"))
    return stops(PREFERENCE, _RIGHT, figure, ctx.config.preference.gate)


def told_ppo(ctx: RunContext) -> StageSummary:
    """Where the score went, and how far from SL-CAI that led."""
    lines = _lines(ctx, PPO)
    first, last = _ends([line["score"] for line in lines if line.get("score") is not None])
    kl = lines[-1].get("kl_per_response") if lines else None
    line = f"{len(lines)} iterations, score {_number(first)} -> {_number(last)}, KL {_number(kl)} nats a response"
    warnings: tuple[str, ...] = ()
    if len(lines) >= FEW_STEPS and last <= first:
        warnings = (
            "the score has not risen: raise ppo.iterations or ppo.policy_optimizer.lr, or lower ppo.kl.coefficient; "
            "ppo/transcripts shows samples with their scores",
        )
    return StageSummary(line, warnings)


def told_dpo(ctx: RunContext) -> StageSummary:
    """How the loss went, and how often the implicit reward is on the label's side on held-out pairs."""
    trained, figure = _trained(ctx, DPO, "pairs"), _accuracy(heldout(ctx, DPO))
    warnings = list(trained.warnings)
    if not above(figure, CHANCE):
        warnings.append(
            f"held-out accuracy of the implicit reward is {shown(figure)}, no better than chance: raise dpo.train's "
            "steps or learning rate, or look at feedback/principles.json"
        )
    return StageSummary(f"{trained.line}, held-out accuracy on the AI's labels {shown(figure)}", tuple(warnings))


def told_evaluate(ctx: RunContext) -> StageSummary:
    """The aligned model beside SL-CAI and base, in the first two measures of the table."""
    result = json.loads(ctx.paths.evaluation.read_text(encoding="utf-8"))
    models = result["models"]
    names = [name for name in MODELS if name in models]
    wanted = [m for m in ("danger", "help_safe", "harmlessness", "helpfulness") if m in models[names[-1]]]
    shown_of = (f"{m} {' -> '.join(_number(models[n][m]['value']) for n in names)}" for m in wanted)
    return StageSummary("; ".join(shown_of))


_AGREE = "both orders prefer the same answer for"
_RIGHT = "held-out accuracy on the AI's labels is"
_LEFT_OUT = {"equal_pairs": "equal", "unparsed_pairs": "without an answer"}


def order_agreement(labelled: Iterable[Labelled]) -> Figure:
    """Share of the pairs for which both orders prefer the same answer, over those that were asked in both."""
    both = ((x.comparison.prompt, agree(x.p_first, x.p_second)) for x in labelled if not math.isnan(x.p_second))
    return pooled_proportion(both)


def _accuracy(figures: dict[str, Any] | None) -> Figure:
    """The accuracy of `source_figures` or `log_heldout` as a figure over prompts."""
    if not figures or figures.get("low") is None:
        return pooled_proportion(())
    return {
        "value": figures["accuracy"],
        "low": figures["low"],
        "high": figures["high"],
        "n": figures.get("prompts", figures["n"]),
    }


def _changed(rows: Sequence[Revision]) -> float | None:
    """Share of usable first revisions that are not the answer before; None where there are none."""
    before = {r.prompt.id: r.response for r in rows if r.round == 0}
    first = [r for r in rows if r.round == 1 and not r.failure]
    return fmean(r.response != before.get(r.prompt.id) for r in first) if first else None


def _trained(ctx: RunContext, stage: str, what: str) -> StageSummary:
    data, lines = _last(ctx, f"{stage}_data"), _lines(ctx, stage)
    kept, too_long = data.get(what, 0), data.get("too_long", 0)
    first, last = _ends([line["loss"] for line in lines if line.get("loss") is not None])
    left_out = f" ({too_long:.0f} too long left out)" if too_long else ""
    line = f"{kept:.0f} {what}{left_out}, {len(lines)} steps, loss {_number(first)} -> {_number(last)}"
    warnings = []
    if too_long > (1 - FEW_USABLE) * (kept + too_long):
        warnings.append(
            f"{too_long:.0f} of {kept + too_long:.0f} {what} are longer than models.context="
            f"{ctx.config.models.context} and were not learned from: raise it"
        )
    if len(lines) >= FEW_STEPS and last >= first:
        warnings.append(f"the loss has not fallen: look at {stage}.train, most of all its optimizer.lr")
    return StageSummary(line, tuple(warnings))


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The means of the first and of the last tenth of a course; NaN of nothing."""
    if not values:
        return math.nan, math.nan
    size = max(1, len(values) // 10)
    return fmean(values[:size]), fmean(values[-size:])


def _number(x: float | None) -> str:
    return "-" if x is None or math.isnan(x) else f"{x:.3g}"


def _lines(ctx: RunContext, series: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(ctx.run_dir) if line["stage"] == series]


def _last(ctx: RunContext, series: str) -> dict[str, Any]:
    return next(iter(reversed(_lines(ctx, series))), {})
