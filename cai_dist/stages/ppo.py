"""Stage 5: RL-CAI by PPO. This file starts the five roles and hands them to the coordinator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cai_dist.config.environment import KEY
from cai_dist.config.run import RunConfig
from cai_dist.config.seeds import stable_seed
from cai_dist.config.stages import PPO
from cai_dist.config.training import Dtype
from cai_dist.coordinator import loop
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.data.chat import ChatFormat
from cai_dist.errors import DataError
from cai_dist.registry import source_notes
from cai_dist.stages.context import RunContext, model_settings, unset_of_lora
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.stages.execution.model_paths import snapshots
from cai_dist.stages.execution.ppo_placement import shown_placement
from cai_dist.stages.execution.training import ds_files
from cai_dist.stages.execution.worker_groups import export_model, ppo_roles
from cai_dist.stages.tables.prompts import prompt_files, training_prompts
from cai_dist.tracking.atomic import write_text
from cai_dist.tracking.checkpoints import CheckpointStore
from cai_dist.tracking.timeline import Timeline
from cai_dist.types import Prompt, Trajectory

if TYPE_CHECKING:
    from cai_dist.workers.prompt_table import PromptTable

NAME: Final = PPO
_NO_RESULT = (
    "placement",
    "checkpoint_every",
    "transfer",
    "transfer_bucket_mb",
    "transfer_tolerance",
    "mismatch_alarm",
    "rewards",
    "environment",
)
"""Settings of `ppo` that change no result, or that `settings` has in another form."""
MISMATCH_ALARM: dict[Dtype, float] = {"fp32": 0.01, "bf16": 0.2}
"""Default of `ppo.mismatch_alarm`, nats per token."""


def settings(config: RunConfig) -> dict[str, Any]:
    """What decides the result of this stage."""
    ppo = config.ppo.model_dump(
        mode="json",
        exclude={
            **dict.fromkeys(_NO_RESULT, True),
            **unset_of_lora(config.ppo.lora),
        },
    )
    rewards = [term.model_dump(mode="json", exclude={"timeout"}) for term in config.ppo.rewards]
    named = {"ppo.algorithm": config.ppo.algorithm, "ppo.schedule": config.ppo.schedule}
    named |= {f"ppo.rewards.{term.shown}": term.use for term in config.ppo.rewards}
    talk = config.ppo.environment
    named |= {} if talk is None else {KEY: talk.use}
    return {
        "ppo": ppo
        | {"algorithm": config.ppo.algorithm_mark}
        | ({} if config.ppo.plain_rewards else {"rewards": rewards})
        | ({} if talk is None else {"environment": talk.decides}),
        **model_settings(config),
        **source_notes(named),
    }


def inputs(ctx: RunContext) -> list[Path]:
    """Prompts, SL-CAI (policy and reference start from it), the preference model, the user's DeepSpeed files."""
    return [
        *prompt_files(ctx, rl=True),
        ctx.paths.sl_model,
        ctx.paths.preference_model,
        *ds_files(*(getattr(ctx.config.ppo, role) for role in ctx.config.ppo.trained_roles)),
    ]


def execute(ctx: RunContext) -> list[Path]:
    """Train and export `ppo/model`; every iteration's first samples are kept in `ppo/transcripts/`, the policies that
    `ppo.snapshot_every` asks for in `ppo/snapshots/`."""
    ctx.folder(NAME)
    target = ctx.paths.model(NAME)
    if not target.is_dir():
        _train(ctx, target)
    shutil.rmtree(ctx.paths.checkpoints(NAME), ignore_errors=True)
    return [target, *snapshots(ctx).values()]


def _train(ctx: RunContext, target: Path) -> None:
    policy = str(ctx.paths.sl_model)
    chat = chat_format(ctx, policy)
    prompts = token_prompts(ctx, chat)
    checkpoints = CheckpointStore(ctx.paths.checkpoints(NAME))
    latest = checkpoints.latest()
    done = latest[0] if latest else 0
    ctx.tracker.rewind(NAME, done)
    timeline = Timeline(ctx.paths.timeline, done)
    with (
        ppo_roles(
            ctx,
            policy,
            str(ctx.paths.preference_model),
            chat.eos_id,
            chat.thought_ids,
            partial(prompt_table, ctx, chat, policy),
        ) as roles,
        shown_placement(ctx, roles),
        ctx.console.task(NAME, total=ctx.config.ppo.iterations, unit="iterations") as task,
    ):
        task.advance(done)

        def log(step: int, **numbers: float) -> None:
            ctx.log(NAME, step, **numbers, **roles.memory(), **roles.reward_metrics())
            if alarm := mismatch_alarm(ctx.config, step, numbers):
                ctx.console.warn(alarm)
            task.advance(1, score=numbers["score"], kl=numbers["kl_per_response"])

        def keep(iteration: int) -> None:
            kept = snapshots(ctx)[iteration]
            if not kept.is_dir():  # there where the run was killed after it: training is exact, so it is the same
                export_model(roles.export, kept, ctx.constitution_note)

        loop.train(
            roles,
            prompts,
            ctx.config.ppo,
            seed=stable_seed(ctx.config.seed, NAME),
            stop_ids=tuple(chat.stop_ids),
            checkpoints=checkpoints,
            log=log,
            should_stop=ctx.should_stop,
            on_rollout=lambda iteration, batch: _transcript(ctx.paths.ppo_transcript(iteration), batch, chat),
            snapshot=keep,
            on_spans=timeline.add,
        )
        export_model(roles.export, target, ctx.constitution_note)


def mismatch_alarm(config: RunConfig, step: int, numbers: Mapping[str, float]) -> str | None:
    """The line that says that sampler and trainer, with the same weights, do not agree on what was sampled; None where
    they do, or where an iteration has no sample of the trainer's weights.

    `numbers` are the metrics after `step` iterations. The bound is `ppo.mismatch_alarm`, by default one for the dtype.
    """
    mean = numbers.get("mismatch_mean")
    bound = config.ppo.mismatch_alarm or MISMATCH_ALARM[config.models.dtype]
    if mean is None or mean <= bound:
        return None
    return (
        f"{NAME}: iteration {step}: with the same weights, sampler and trainer differ by {mean:.3g} nats a token on "
        f"average (at most {numbers['mismatch_max']:.3g}), more than ppo.mismatch_alarm={bound:g}; the ratios of PPO "
        "are off by as much"
    )


def token_prompts(ctx: RunContext, chat: ChatFormat) -> list[TokenizedPrompt]:
    """Training prompts of both kinds as token ids; those without room for an answer are left out and counted."""
    room = ctx.config.models.context - ctx.config.ppo.sampling.max_new_tokens
    prompts = _prompts(ctx)
    made = [TokenizedPrompt(p.id, p.kind, chat.prompt_ids(p.turns)) for p in prompts]
    kept = [p for p in made if len(p.ids) <= room]
    ctx.tracker.rewind(f"{NAME}_data", -1)
    ctx.log(f"{NAME}_data", 0, prompts=len(kept), too_long=len(made) - len(kept))
    if not kept:
        raise DataError(f"ppo: no prompt leaves room for {ctx.config.ppo.sampling.max_new_tokens} new tokens")
    return kept


def _prompts(ctx: RunContext) -> list[Prompt]:
    return training_prompts(ctx, "red_team", rl=True) + training_prompts(ctx, "helpful", rl=True)


def prompt_table(ctx: RunContext, chat: ChatFormat, policy: str) -> PromptTable:
    """The training prompts in words, by their token ids, for reward terms of one's own and environments."""
    from cai_dist.workers.prompt_table import PromptTable

    models = ctx.config.models
    prompts = _prompts(ctx)
    return PromptTable(
        prompts={chat.prompt_ids(prompt.turns): prompt for prompt in reversed(prompts)},
        model=policy,
        chat=models.chat,
        labels=ctx.constitution.templates.labels,
        arguments=models.chat_arguments,
        day=models.chat_date or ctx.manifest.date,
        context=models.context,
    )


def _transcript(path: Path, batch: Sequence[Trajectory], chat: ChatFormat) -> None:
    """The first eight samples of an iteration, one JSON object a line: its last answer, and what was said `before` it
    after the prompt, where something was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_shown(trajectory, chat), ensure_ascii=False) for trajectory in batch[:8]]
    write_text(path, "\n".join(lines) + "\n")


def _shown(t: Trajectory, chat: ChatFormat) -> dict[str, Any]:
    *said, (_, last) = t.turns()
    thoughts, answer = chat.thoughts_and_answer(last.tolist())
    before = [
        chat.response_text(ids.tolist()) if by_model else chat.next_turn_words(ids.tolist()) for by_model, ids in said
    ]
    return {
        "prompt_id": t.prompt_id,
        "kind": t.prompt_kind,
        "prompt": chat.plain_text(t.prompt_ids.tolist()),
        **({"before": before} if before else {}),
        "response": answer,
        **({"thoughts": thoughts} if thoughts else {}),
        "score": round(t.score, 4),
        "finish": t.finish,
        "weight_version": t.weight_version,
    }
