"""DPO, in place of preference and ppo (`alignment: dpo`): SL-CAI learns the same comparisons without a reward model
(Rafailov et al. 2023, 2305.18290; Azar et al. 2023, 2310.12036). The result is DPO-CAI."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from cai_dist.config.run import RunConfig
from cai_dist.config.stages import DPO
from cai_dist.data.schedule import plan_items
from cai_dist.stages.comparisons.pairs import ai_comparisons, decided, fitting, log_heldout, scored_pair, training_pairs
from cai_dist.stages.context import RunContext, model_settings, unset
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.stages.execution.generation import open_shards
from cai_dist.stages.execution.reuse import model_hash
from cai_dist.stages.execution.training import ds_files, total_steps, train
from cai_dist.stages.execution.worker_groups import export_model, trained_model
from cai_dist.tracking.atomic import sha256_json
from cai_dist.types import DpoPair, ScoredPair, StepShard

if TYPE_CHECKING:
    from cai_dist.cluster.group import WorkerGroup

NAME: Final = DPO
SHARD = 64
"""Pairs whose log-probabilities make one call and one durable file: few enough for the deadline of a call."""
REFERENCE: Final = "reference_logprobs"
"""What workers are asked for log-probabilities under SL-CAI."""
LOGPROBS = pa.schema([("logprob_a", pa.float64()), ("logprob_b", pa.float64())])


def settings(config: RunConfig) -> dict[str, Any]:
    """What decides the result of this stage."""
    return {
        "dpo": config.dpo.model_dump(mode="json", exclude={"train": {"checkpoint_every"}, **unset(config.dpo)}),
        **model_settings(config),
    }


def inputs(ctx: RunContext) -> list[Path]:
    """Comparisons, SL-CAI (policy and reference start from it), and the user's DeepSpeed file."""
    return [
        ctx.paths.comparisons,
        ctx.paths.human,
        ctx.paths.sl_model,
        *ds_files(ctx.config.dpo.train.sharding),
    ]


def execute(ctx: RunContext) -> list[Path]:
    """Train and export `dpo/model`; measure its implicit reward on held-out comparisons in `heldout.json`."""
    folder = ctx.folder(NAME)
    target, measured = ctx.paths.model(NAME), ctx.paths.heldout(NAME)
    if not target.is_dir():
        _train(ctx, folder, target, measured)
    paths = ctx.paths
    for scratch in (paths.checkpoints(NAME), paths.dpo_reference, paths.dpo_reference_heldout, paths.dpo_measured):
        shutil.rmtree(scratch, ignore_errors=True)
    return [target, measured]


def _train(ctx: RunContext, folder: Path, target: Path, measured: Path) -> None:
    """From SL-CAI (or the newest checkpoint) to the exported model; the held-out measurement comes before the export,
    so that a model that is there is a measured one."""
    config = ctx.config.dpo
    model = str(ctx.paths.sl_model)
    chat = chat_format(ctx, model)
    pairs = training_pairs(ctx, NAME, chat, config.helpful_fraction)
    known = [(c.prompt, scored_pair(chat, c)) for c in decided(ai_comparisons(ctx, "heldout"))]
    known = [(prompt, pair) for prompt, pair in known if fitting([pair], ctx.config.models.context)]
    heldout = [pair for _, pair in known]
    steps = total_steps(len(pairs), config.train, "dpo.train")
    with trained_model(
        ctx, NAME, "dpo", model, config.train, steps, loss=config.loss, beta=config.beta, lora=config.lora
    ) as group:
        # The group is SL-CAI until its first step or checkpoint; with LoRA also after that, without its adapter.
        examples = [
            DpoPair(p.ids_a, p.ids_b, p.p_a, p.source, p.prompt_tokens, a, b)
            for p, (a, b) in zip(pairs, _logprobs(ctx, group, pairs, ctx.paths.dpo_reference, REFERENCE), strict=True)
        ]
        before = _logprobs(ctx, group, heldout, ctx.paths.dpo_reference_heldout, REFERENCE)
        train(ctx, NAME, group, examples, config.train, lambda batch: float(len(batch)), folder)
        after = _logprobs(ctx, group, heldout, ctx.paths.dpo_measured)
        rewards = [
            (config.beta * (a - ref_a), config.beta * (b - ref_b))
            for (a, b), (ref_a, ref_b) in zip(after, before, strict=True)
        ]
        labels, prompts = [pair.p_a for pair in heldout], [prompt for prompt, _ in known]
        ctx.write_result(measured, log_heldout(ctx, NAME, rewards, labels, prompts))
        export_model(
            lambda folder: group.broadcast("dpo: export", "export", str(folder)), target, ctx.constitution_note
        )


def _logprobs(
    ctx: RunContext, group: WorkerGroup, pairs: Sequence[ScoredPair], folder: Path, method: str = "pair_logprobs"
) -> list[tuple[float, float]]:
    """Summed log-probabilities of both answers of each pair under the group's present weights, or by another `method`
    of its workers; shards that are in `folder` are read, not made again. Raises Interrupted between shards."""
    pieces = [pairs[i : i + SHARD] for i in range(0, len(pairs), SHARD)]
    provenance = {"what": folder.name, "model": model_hash(str(ctx.paths.sl_model)), **settings(ctx.config)}
    keys = [sha256_json({**provenance, "pairs": [[list(p.ids_a), list(p.ids_b)] for p in piece]}) for piece in pieces]
    shards = open_shards(ctx, folder, keys)
    missing = shards.missing()
    sharding = ctx.config.dpo.train.sharding
    with ctx.console.task(f"dpo: {folder.name}", total=len(pairs), unit="pairs") as task:
        task.advance(len(pairs) - sum(len(pieces[i]) for i in missing))
        for i in missing:
            plan = plan_items(pieces[i], sharding.ranks, sharding, ctx.config.models.layout)
            parts = [StepShard(micro) for micro in plan.split(pieces[i])]
            found = plan.restore(group.scatter(f"dpo: {folder.name}", method, parts))
            shards.write(i, [{"logprob_a": a, "logprob_b": b} for a, b in found], LOGPROBS)
            task.advance(len(pieces[i]))
            ctx.check_stop()
    return [(row["logprob_a"], row["logprob_b"]) for row in shards.rows()]
