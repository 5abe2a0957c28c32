"""Stage 3: AI feedback. SL-CAI answers each prompt twice; the feedback model is asked which answer is better under a
principle drawn for the pair; the normalised log-probabilities of the two option labels are the soft label
(2212.08073, section 4.1).

Departures from the paper: 1. every question is asked in both orders and averaged (`orders: both`), because small models
prefer a position; `orders: one` is the paper's single question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from cai_dist.config.run import RunConfig
from cai_dist.config.seeds import stable_seed
from cai_dist.config.stages import FEEDBACK
from cai_dist.constitution import ComparisonPrinciple, clean_answer, draw, draw_some
from cai_dist.errors import DataError
from cai_dist.stages.ai_feedback import labelling
from cai_dist.stages.ai_feedback.labelling import pair_answers, refuse_noise
from cai_dist.stages.ai_feedback.local_check import check_workers, needs_check
from cai_dist.stages.ai_feedback.option_tokens import check_feedback
from cai_dist.stages.ai_feedback.statistics import Statistics, agree, entropy, principle_statistics
from cai_dist.stages.context import RunContext
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.stages.execution.generation import Ask, generate
from cai_dist.stages.execution.model_paths import model_path
from cai_dist.stages.execution.worker_groups import rollout_group
from cai_dist.stages.tables.prompts import heldout_prompts, prompt_files, training_prompts
from cai_dist.stages.tables.records import Labelled, write_comparisons
from cai_dist.types import Comparison, Prompt

if TYPE_CHECKING:
    from cai_dist.cluster.work_queue import WorkQueue

NAME: Final = FEEDBACK
BETWEEN_IDS = "+"
"""Stands between the ids of the principles of one pair (`feedback.per_pair`)."""


def settings(config: RunConfig) -> dict[str, Any]:
    """What decides the result of this stage."""
    return {
        "feedback": config.feedback.model_dump(mode="json", exclude={"workers", "endpoint", "model", "gate"}),
        **labelling.settings(config),
    }


def inputs(ctx: RunContext) -> list[Path]:
    """Prompts, the SL-CAI model, the feedback model."""
    sl = ctx.paths.sl_model
    return [*prompt_files(ctx, "red_team"), *dict.fromkeys([sl, *labelling.inputs(ctx)])]


def execute(ctx: RunContext) -> list[Path]:
    """Write `feedback/comparisons.parquet` (train and held-out prompts, marked by `split`)."""
    folder = ctx.folder(NAME)
    ctx.tracker.rewind(NAME, -1)
    elsewhere = ctx.config.feedback.elsewhere
    # Stage prepare looks at it too, but is not done anew for another server or other labels.
    check_feedback(ctx, "" if elsewhere else model_path(ctx, "feedback"))
    prompts = training_prompts(ctx, "red_team") + [p for p in heldout_prompts(ctx) if p.kind == "red_team"]
    with rollout_group(ctx, NAME, ctx.config.feedback.workers) as group:
        if needs_check(ctx):
            check_workers(ctx, group, folder, model_path(ctx, "feedback"))
        pairs = sample_pairs(ctx, group, folder, prompts)
        labelled, principles, mass = label_all(ctx, group, folder, pairs)
    labelled = control(labelled, ctx.config.feedback.labels, ctx.config.seed)
    target = ctx.paths.comparisons
    write_comparisons(target, labelled, ctx.constitution_note)
    _log(ctx, labelled, mass)
    ctx.write_result(ctx.paths.principles, {"principles": principles, "option_mass": mass})
    return [target, ctx.paths.principles]


def sample_pairs(ctx: RunContext, group: WorkQueue, folder: Path, prompts: Sequence[Prompt]) -> list[Comparison]:
    """Two answers of SL-CAI per prompt and repetition; pairs that are equal or do not parse are left out, counted.

    Which of the two is called A is drawn per pair, so that the order of sampling carries no label. `principle_id` names
    the principles drawn for it.
    """
    config = ctx.config.feedback
    model = str(ctx.paths.sl_model)
    chat = chat_format(ctx, model)
    asks = [
        Ask(f"{p.id}/{k}/{side}", chat.prompt_ids(p.turns))
        for p in prompts
        for k in range(config.pairs_per_prompt)
        for side in "xy"
    ]
    answers = generate(
        ctx, group, folder, "pairs", asks, model=model, chat=chat, sampling=config.sampling,
        shard_size=config.shard_size,
    )  # fmt: skip
    labels = ctx.constitution.templates.labels
    parsed = [clean_answer(a.text, labels) for a in answers]
    texts = iter([None if p.failure else p.text for p in parsed])
    pairs, equal, failed = [], 0, 0
    for prompt in prompts:
        for k in range(config.pairs_per_prompt):
            x, y = next(texts), next(texts)
            if x is None or y is None:
                failed += 1
            elif x == y:
                equal += 1
            else:
                if stable_seed(ctx.config.seed, "side", prompt.id, k) % 2:
                    x, y = y, x
                pairs.append(Comparison(prompt, x, y, 0.5, "ai", BETWEEN_IDS.join(_drawn(ctx, prompt.id, k))))
    ctx.log(NAME, 0, pairs=len(pairs), equal_pairs=equal, unparsed_pairs=failed)
    if not pairs:
        raise DataError(
            f"{folder}: none of {len(prompts) * config.pairs_per_prompt} pairs can be compared ({equal} equal, "
            f"{failed} without an answer); raise feedback.sampling.temperature or max_new_tokens"
        )
    return pairs


def label_all(
    ctx: RunContext, group: WorkQueue, folder: Path, pairs: Sequence[Comparison]
) -> tuple[list[Labelled], list[Statistics], float]:
    """The pairs that have a label, the statistics of the principles that they were asked under, and the mean mass of
    the options over all questions."""
    config = ctx.config.feedback
    ids = [pair.principle_id.split(BETWEEN_IDS) for pair in pairs]
    refuse_noise(ctx, group, folder, pairs, ids)
    answers = pair_answers(ctx, group, folder, "labels", pairs, ids)
    found, asked = [], []
    for pair, names, label in zip(pairs, ids, answers.labels, strict=True):
        if label is not None:
            second = fmean(label.second) if label.second else math.nan
            p = harden(label.p) if config.hard else label.p
            found.append(Labelled(replace(pair, p_a=p), label.p, fmean(label.first), second))
            asked.append((names, label))
    ctx.log(NAME, 1, labelled=len(found), unanswered_pairs=len(pairs) - len(found))
    if not found:
        raise DataError(
            f"{folder}: none of {len(pairs)} comparisons has a label; feedback_labels in metrics.jsonl counts why "
            f"(too_long: raise models.context, now {ctx.config.models.context}, or the server's; no_reasoning: raise "
            "feedback.reasoning.sampling.max_new_tokens or retries; no_label: the answers name no option, or both "
            "with less than feedback.min_option_mass, show worked comparisons or change feedback.option_labels; "
            "refused: or failed: take another server)"
        )
    return found, principle_statistics([p.id for p in _principles(ctx)], asked), answers.option_mass


def harden(p: float) -> float:
    """The label as a choice: 1, 0, or 1/2 for a tie."""
    return 0.5 if p == 0.5 else float(p > 0.5)


def control(labelled: Sequence[Labelled], labels: str, seed: int) -> list[Labelled]:
    """The negative controls. `inverted`: p becomes 1 - p. `shuffled`: labels are dealt anew within each split; A and B
    were drawn at random before, so that position carries nothing."""
    if labels == "normal":
        return list(labelled)
    if labels == "inverted":
        return [replace(x, comparison=replace(x.comparison, p_a=1.0 - x.comparison.p_a)) for x in labelled]
    shuffled = list(labelled)
    for split in ("train", "heldout"):
        places = [i for i, x in enumerate(labelled) if x.comparison.prompt.split == split]
        dealt = sorted(places, key=lambda i: stable_seed(seed, "shuffle", i))
        for place, source in zip(places, dealt, strict=True):
            x = labelled[place]
            shuffled[place] = replace(x, comparison=replace(x.comparison, p_a=labelled[source].comparison.p_a))
    return shuffled


def _principles(ctx: RunContext) -> Sequence[ComparisonPrinciple]:
    return ctx.constitution.comparison_principles[: ctx.config.feedback.principles]


def _drawn(ctx: RunContext, prompt_id: str, repetition: int) -> list[str]:
    """Ids of the `feedback.per_pair` different principles that a pair is asked under."""
    ids, k = [p.id for p in _principles(ctx)], ctx.config.feedback.per_pair
    if k == 1:
        return [ids[draw(ctx.config.seed, NAME, prompt_id, repetition, n=len(ids))]]
    return [ids[i] for i in draw_some(ctx.config.seed, NAME, prompt_id, repetition, n=len(ids), k=k)]


def _log(ctx: RunContext, labelled: Sequence[Labelled], mass: float) -> None:
    numbers = {
        "comparisons": len(labelled),
        "option_mass": mass,
        "mean_confidence": fmean(abs(x.p_model - 0.5) + 0.5 for x in labelled),
        "entropy": fmean(entropy(x.p_model) for x in labelled),
        "p_first_mean": fmean(x.p_first for x in labelled),
    }
    both = [x for x in labelled if not math.isnan(x.p_second)]
    if both:
        numbers["order_agreement"] = fmean(agree(x.p_first, x.p_second) for x in both)
        numbers["position_bias"] = fmean(x.p_first - x.p_second for x in both) / 2
    ctx.log(NAME, 2, **numbers)
