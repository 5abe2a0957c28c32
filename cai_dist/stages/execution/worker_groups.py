"""How the stages start their workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_dist.config.seeds import stable_seed
from cai_dist.config.threads import role_threads, worker_threads
from cai_dist.config.training import TrainConfig
from cai_dist.data.thoughts import ThoughtIds
from cai_dist.tracking.atomic import remove_leftovers, staging_dir, write_json
from cai_dist.types import WorkerSpec
from cai_dist.workers.registry import TrainedKind

if TYPE_CHECKING:
    from cai_dist.cluster.group import WorkerGroup
    from cai_dist.cluster.ppo.groups import PpoGroups
    from cai_dist.cluster.work_queue import Loss, WorkQueue
    from cai_dist.stages.context import RunContext
    from cai_dist.workers.prompt_table import PromptTable


@contextmanager
def rollout_group(ctx: RunContext, role: str, workers: int) -> Iterator[WorkQueue]:
    """`workers` independent processes that generate and score text, behind a queue."""
    spec = WorkerSpec(
        "rollout",
        {
            "model": "",
            "dtype": ctx.config.models.dtype,
            "engine": ctx.config.engine,
            "threads": _threads(ctx, workers * ctx.config.engine.processes),
        },
    )
    with _queue(ctx, role, spec, workers) as queue:
        yield queue


@contextmanager
def trained_model(
    ctx: RunContext,
    role: str,
    kind: TrainedKind,
    model: str,
    config: TrainConfig,
    steps: int,
    **settings: Any,
) -> Iterator[WorkerGroup]:
    """`config.sharding.ranks` processes that share one DeepSpeed engine and train `model`; `settings` go to the kind's
    worker."""
    kwargs: dict[str, Any] = {
        "model": model,
        "dtype": ctx.config.models.dtype,
        "layout": ctx.config.models.layout,
        "head_dtype": ctx.config.models.head_dtype,
        "export": ctx.config.models.export,
        "optimizer": config.optimizer,
        "sharding": config.sharding,
        "total_steps": steps,
        "seed": stable_seed(ctx.config.seed, role) % 2**31,
        "threads": _threads(ctx, config.sharding.ranks),
        "timeouts": ctx.config.cluster.timeouts,
        "training": ctx.config.engine.training,
        **settings,
    }
    with _group(ctx, role, WorkerSpec(kind, kwargs), config.sharding.ranks, distributed=True) as group:
        yield group


def export_model(export: Callable[[Path], object], target: Path, note: Mapping[str, Any] | None = None) -> None:
    """Have `export` write a model into a temporary folder that then becomes `target`; clears what a killed one left.

    `note` (`RunContext.constitution_note`) goes beside the weights as `constitution.json`: under which constitution the
    model was made. None for the micro-world's own model, which is older than any run.
    """
    remove_leftovers(target)
    with staging_dir(target) as temporary:
        export(temporary)
        if note is not None:
            write_json(temporary / "constitution.json", note)


@contextmanager
def reward_group(ctx: RunContext, model: str, end_id: int, workers: int) -> Iterator[WorkQueue]:
    """`workers` independent processes that score answers with the preference model in `model`, behind a queue."""
    kwargs = {
        "model": model,
        "dtype": ctx.config.models.dtype,
        "layout": ctx.config.models.layout,
        "end_id": end_id,
        "threads": _threads(ctx, workers),
        "timeouts": ctx.config.cluster.timeouts,
    }
    spec = WorkerSpec("reward", kwargs)
    with _queue(ctx, "reward", spec, workers) as queue:
        yield queue


@contextmanager
def reference_group(ctx: RunContext, model: str, workers: int) -> Iterator[WorkQueue]:
    """`workers` independent processes that give log-probabilities of answers under `model`, behind a queue."""
    kwargs = {
        "model": model,
        "dtype": ctx.config.models.dtype,
        "layout": ctx.config.models.layout,
        "head_dtype": ctx.config.models.head_dtype,
        "threads": _threads(ctx, workers),
        "timeouts": ctx.config.cluster.timeouts,
    }
    spec = WorkerSpec("reference", kwargs)
    with _queue(ctx, "reference", spec, workers) as queue:
        yield queue


def _threads(ctx: RunContext, workers: int) -> int:
    cluster = ctx.config.cluster
    return worker_threads(cluster, workers, cluster.cpus, ctx.cpus)


@contextmanager
def _queue(ctx: RunContext, role: str, spec: WorkerSpec, workers: int) -> Iterator[WorkQueue]:
    """Independent workers behind a queue that starts those that die again; each is told and counted."""
    from cai_dist.cluster.work_queue import WorkQueue

    def lost(loss: Loss) -> None:
        what = "a new worker is started in its place" if loss.again else "it does not come up again"
        ctx.console.warn(f"{loss.role}[{loss.rank}] on {loss.node}: {loss.cause}; {what}")
        if loss.again:
            ctx.log(f"{role}_workers", loss.restarts, restarts=loss.restarts, rank=loss.rank)

    with _group(ctx, role, spec, workers, distributed=False) as group:
        yield WorkQueue(group, ctx.config.cluster.retries, lost=lost, check=ctx.check_stop)


@contextmanager
def _group(ctx: RunContext, role: str, spec: WorkerSpec, workers: int, *, distributed: bool) -> Iterator[WorkerGroup]:
    from cai_dist.cluster.runtime import GroupSpec

    cluster = ctx.config.cluster
    asked = GroupSpec(
        role=role,
        spec=spec,
        workers=workers,
        cpus=cluster.cpus,
        gpus=cluster.gpus,
        distributed=distributed,
        processes=ctx.config.engine.processes if spec.target == "rollout" else 1,
    )
    ctx.console.say(f"starting {workers} {role} worker{'s' if workers > 1 else ''}")
    group = ctx.cluster().launch([asked])[role]
    try:
        yield group
    except BaseException:
        group.close()
        raise
    if ctx.config.engine.leaves_nothing:
        ctx.cluster().keep(group, asked)
    else:
        group.close()


@contextmanager
def ppo_roles(
    ctx: RunContext,
    policy: str,
    preference: str,
    end_id: int,
    thoughts: ThoughtIds,
    prompts: Callable[[], PromptTable] | None = None,
) -> Iterator[PpoGroups]:
    """The roles that PPO's algorithm needs, up and loaded: policy and reference from `policy`, reward from
    `preference`. `prompts`: what environments and reward terms of one's own are told, asked for where there are
    some."""
    from cai_dist.cluster.ppo.groups import PpoGroups, PpoModels

    config, ppo = ctx.config, ctx.config.ppo
    value = preference if ppo.value_init == "preference" else policy
    updates = ppo.epochs * (ppo.prompts_per_iteration * ppo.samples_per_prompt // ppo.mini_batch)
    ctx.console.say(f"starting the {', '.join(ppo.roles[:-1])} and {ppo.roles[-1]} workers")
    with PpoGroups(
        ctx.cluster(),
        ppo,
        PpoModels(policy=policy, reference=policy, reward=preference, value=value),
        dtype=config.models.dtype,
        layout=config.models.layout,
        head_dtype=config.models.head_dtype,
        export=config.models.export,
        end_id=end_id,
        thoughts=thoughts,
        policy_steps=max(1, updates * (ppo.iterations - ppo.value_warmup)),
        value_steps=updates * ppo.iterations,
        seed=stable_seed(config.seed, "ppo workers") % 2**31,
        timeouts=config.cluster.timeouts,
        threads=role_threads(config, ctx.cpus),
        engine=config.engine,
        prompts=prompts() if prompts is not None and ppo.tells_prompts else None,
    ) as roles:
        yield roles
