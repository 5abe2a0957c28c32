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
from typing import TYPE_CHECKING, Any

from cai_dist.config.run import FeedbackConfig, RunConfig
from cai_dist.constitution import ComparisonPrinciple, clean_answer, comparison_turns, draw
from cai_dist.errors import DataError
from cai_dist.stages import prepare
from cai_dist.stages.chats import chat_format
from cai_dist.stages.context import RunContext, model_settings, stable_seed
from cai_dist.stages.generation import Ask, generate, score_labels
from cai_dist.stages.records import Labelled, read_prompts, write_comparisons
from cai_dist.types import Comparison, Prompt

if TYPE_CHECKING:
    from cai_dist.cluster.group import WorkerGroup

NAME = "feedback"


def settings(config: RunConfig) -> dict[str, Any]:
    """What decides the result of this stage."""
    return {
        "feedback": config.feedback.model_dump(mode="json", exclude={"workers"}),
        **model_settings(config),
    }


def inputs(run: RunContext) -> list[Path]:
    """Prompts, the SL-CAI model, the feedback model."""
    before = run.run_dir / prepare.NAME
    return [before / "red_team.parquet", run.run_dir / "sft" / "model", before / "models.json"]


def run(run: RunContext) -> list[Path]:
    """Write `feedback/comparisons.parquet` (train and held-out prompts, marked by `split`)."""
    folder = run.folder(NAME)
    run.tracker.rewind(NAME, -1)
    prompts = read_prompts(run.run_dir / prepare.NAME / "red_team.parquet")
    with run.generators(NAME, run.config.feedback.workers) as group:
        pairs = sample_pairs(run, group, folder, prompts)
        labelled = label_pairs(run, group, folder, pairs)
    labelled = control(labelled, run.config.feedback.labels, run.config.seed)
    target = folder / "comparisons.parquet"
    write_comparisons(target, labelled)
    _statistics(run, labelled)
    return [target]


def sample_pairs(run: RunContext, group: WorkerGroup, folder: Path, prompts: Sequence[Prompt]) -> list[Comparison]:
    """Two answers of SL-CAI per prompt and repetition; pairs that are equal or do not parse are left out, counted.

    Which of the two is called A is drawn per pair, so that the order of sampling carries no label.
    """
    config = run.config.feedback
    model = str(run.run_dir / "sft" / "model")
    chat = chat_format(run, model)
    asks = [
        Ask(f"{p.id}/{k}/{side}", chat.prompt_ids(p.turns))
        for p in prompts
        for k in range(config.pairs_per_prompt)
        for side in "xy"
    ]
    answers = generate(
        run, group, folder, "pairs", asks, model=model, chat=chat, sampling=config.sampling,
        shard_size=config.shard_size,
    )  # fmt: skip
    labels = run.constitution.templates.labels
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
                if stable_seed(run.config.seed, "side", prompt.id, k) % 2:
                    x, y = y, x
                principle = _principle(run, prompt.id, k)
                pairs.append(Comparison(prompt, x, y, 0.5, "ai", principle.id))
    run.log(NAME, 0, pairs=len(pairs), equal_pairs=equal, unparsed_pairs=failed)
    if not pairs:
        raise DataError(
            f"{folder}: none of {len(prompts) * config.pairs_per_prompt} pairs can be compared ({equal} equal, "
            f"{failed} without an answer); raise feedback.sampling.temperature or max_new_tokens"
        )
    return pairs


def label_pairs(run: RunContext, group: WorkerGroup, folder: Path, pairs: Sequence[Comparison]) -> list[Labelled]:
    """Soft labels: p(A) = exp(l_A) / (exp(l_A) + exp(l_B)), averaged over both orders where asked."""
    config = run.config.feedback
    model = prepare.model_path(run, "feedback")
    chat = chat_format(run, model)
    labels = chat.option_ids(config.prefill, config.option_labels)
    principles = {p.id: p for p in run.constitution.comparison_principles}
    orders = (False, True) if config.orders == "both" else (False,)
    asks = []
    for i, pair in enumerate(pairs):
        for swapped in orders:
            a, b = (pair.response_b, pair.response_a) if swapped else (pair.response_a, pair.response_b)
            turns = comparison_turns(
                run.constitution, pair.prompt.turns, principles[pair.principle_id], a, b, config.few_shot,
                stable_seed(run.config.seed, "few shot", i), _shown(config),
            )  # fmt: skip
            asks.append(Ask(f"{i}/{int(swapped)}", chat.prompt_ids(turns, prefill=config.prefill)))
    scores = score_labels(
        run, group, folder, "labels", asks, model=model, labels=labels, shard_size=config.shard_size
    )  # fmt: skip
    found, too_long = [], 0
    for i, pair in enumerate(pairs):
        asked = scores[i * len(orders) : (i + 1) * len(orders)]
        if any(s is None for s in asked):
            too_long += 1
            continue
        first = first_option(asked[0])  # type: ignore[arg-type]
        second = 1.0 - first_option(asked[1]) if len(orders) == 2 else math.nan  # type: ignore[arg-type]
        p = (first + second) / 2 if len(orders) == 2 else first
        found.append(Labelled(replace(pair, p_a=p), p, first, second))
    run.log(NAME, 1, labelled=len(found), too_long_questions=too_long)
    if not found:
        raise DataError(
            f"{folder}: every comparison is longer than models.context={run.config.models.context}; raise it"
        )
    return found


def first_option(logprobs: tuple[float, ...]) -> float:
    """Probability of the first of two options from their log-probabilities, normalised over the two."""
    a, b = logprobs
    return 1.0 / (1.0 + math.exp(min(700.0, b - a)))


def control(labelled: Sequence[Labelled], labels: str, seed: int) -> list[Labelled]:
    """The negative controls. `inverted`: p becomes 1 - p. `shuffled`: labels are dealt anew within each split; A and B
    were drawn at random before, so that position carries nothing."""
    if labels == "normal":
        return list(labelled)
    if labels == "inverted":
        return [replace(x, comparison=replace(x.comparison, p_a=1.0 - x.p_model)) for x in labelled]
    shuffled = list(labelled)
    for split in ("train", "heldout"):
        places = [i for i, x in enumerate(labelled) if x.comparison.prompt.split == split]
        dealt = sorted(places, key=lambda i: stable_seed(seed, "shuffle", i))
        for place, source in zip(places, dealt, strict=True):
            x = labelled[place]
            shuffled[place] = replace(x, comparison=replace(x.comparison, p_a=labelled[source].p_model))
    return shuffled


def _shown(config: FeedbackConfig) -> tuple[str, str]:
    """How a worked example gives its answer: the prefill and the option label."""
    a, b = config.option_labels
    return config.prefill + a, config.prefill + b


def _principle(run: RunContext, prompt_id: str, repetition: int) -> ComparisonPrinciple:
    principles = run.constitution.comparison_principles[: run.config.feedback.principles]
    return principles[draw(run.config.seed, "feedback", prompt_id, repetition, n=len(principles))]


def _statistics(run: RunContext, labelled: Sequence[Labelled]) -> None:
    n = len(labelled)
    numbers = {
        "comparisons": float(n),
        "mean_confidence": sum(abs(x.p_model - 0.5) + 0.5 for x in labelled) / n,
        "p_first_mean": sum(x.p_first for x in labelled) / n,
    }
    both = [x for x in labelled if not math.isnan(x.p_second)]
    if both:
        numbers["order_agreement"] = sum((x.p_first > 0.5) == (x.p_second > 0.5) for x in both) / len(both)
        numbers["position_bias"] = sum(x.p_first - x.p_second for x in both) / len(both) / 2
    run.log(NAME, 2, **numbers)
