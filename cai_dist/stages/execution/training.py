"""The loop shared by everything that is trained with labels: pretraining, SL-CAI, the preference model, DPO-CAI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cai_dist.config.seeds import stable_seed
from cai_dist.config.training import ShardingConfig, TrainConfig
from cai_dist.data.schedule import plan_items, step_indices, steps_per_epoch
from cai_dist.errors import DataError
from cai_dist.stages.context import RunContext
from cai_dist.tracking.checkpoints import CheckpointStore
from cai_dist.tracking.run_folder import CHECKPOINTS
from cai_dist.types import StepShard

if TYPE_CHECKING:
    from cai_dist.cluster.group import WorkerGroup

T = TypeVar("T")


def ds_files(*shardings: ShardingConfig) -> list[Path]:
    """The DeepSpeed files that a user gave: inputs of a stage, because their content affects its result."""
    given = dict.fromkeys(Path(s.ds_config) for s in shardings if s.ds_config is not None)
    return [path for path in given if path.is_file()]


def total_steps(examples: int, config: TrainConfig, what: str) -> int:
    """Optimiser steps of the job. Raises DataError where there is nothing to learn from."""
    if not examples:
        raise DataError(f"{what}: there is no example to train on; the stages before left none that fits")
    steps = config.epochs * steps_per_epoch(examples, config.batch_size)
    return min(steps, config.max_steps) if config.max_steps else steps


def train(
    ctx: RunContext,
    stage: str,
    group: WorkerGroup,
    examples: Sequence[T],
    config: TrainConfig,
    denominator: Callable[[Sequence[T]], float],
    folder: Path,
) -> int:
    """Train from the newest checkpoint under `folder` (or from the start) to the end; returns the number of steps.

    The data cursor is the step: which examples a step sees is a pure function of (seed, step). `denominator` counts,
    over the whole batch, what the loss is averaged over. A step that is not taken (`OptimizerConfig.skipped_steps`) is
    told and not counted: the next batch takes its place.
    """
    steps = total_steps(len(examples), config, stage)
    store = CheckpointStore(folder / CHECKPOINTS)
    start = skipped = 0
    if latest := store.latest():
        start, saved = latest
        skipped = group.broadcast(f"{stage}: resume", "load", str(saved))[0]
    ctx.tracker.rewind(stage, start)
    ctx.tracker.rewind(f"{stage}_skipped", skipped)
    seed = stable_seed(ctx.config.seed, stage, "order")
    sharding = config.sharding
    with ctx.console.task(stage, total=steps, unit="steps") as task:
        task.advance(start)
        done = start
        while done < steps:
            chosen = step_indices(len(examples), config.batch_size, seed, done + skipped)
            batch = [examples[i] for i in chosen]
            total = denominator(batch)
            plan = plan_items(batch, sharding.ranks, sharding, ctx.config.models.layout)
            shards = [StepShard(micro, total) for micro in plan.split(batch)]
            metrics = group.scatter(f"{stage}: step {done + 1}", "train_step", shards)[0]
            if metrics.get("skipped"):
                skipped += 1
                ctx.console.warn(f"{stage}: step {done + 1} was not finite and is left out ({skipped} so far)")
                ctx.log(f"{stage}_skipped", skipped, at_step=done + 1, **metrics)
                continue
            done += 1
            ctx.log(stage, done, **metrics)
            task.advance(1, loss=metrics["loss"])
            if done < steps and (done % config.checkpoint_every == 0 or ctx.should_stop()):
                with store.write(done) as target:
                    group.broadcast(f"{stage}: checkpoint {done}", "save", str(target))
                ctx.check_stop()
    return steps
