"""The pipeline: the stages in order, each begun, run and finished in the manifest; finished ones are skipped.

A stage is finished when the manifest says so *and* its fingerprint (settings that affect its result, seed,
constitution, hashes of its input files) is what it would be now. Where settings have changed since, the stage's folder
is moved aside and the stage runs again; what comes after it follows, because its inputs have changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai_dist.config.loading.load import dump_run
from cai_dist.config.own_stages import OwnStage
from cai_dist.config.run import RunConfig
from cai_dist.config.stages import DPO, EVALUATE, EXPAND, FEEDBACK, PPO, PREFERENCE, PREPARE, REVISE, SFT
from cai_dist.constitution import run_constitution
from cai_dist.errors import ConfigError, Interrupted
from cai_dist.stages import dpo, evaluate, expand, feedback, ppo, preference, prepare, revise, sft
from cai_dist.stages.context import RunContext
from cai_dist.stages.evaluation.gate import enforce
from cai_dist.stages.execution.ppo_placement import check_placement, on_gpus
from cai_dist.stages.own_stage import execute_own, own_inputs, own_settings
from cai_dist.stages.preflight.strategies import check_strategies
from cai_dist.stages.summaries import (
    StageSummary,
    gate_feedback,
    gate_preference,
    told_dpo,
    told_evaluate,
    told_expand,
    told_feedback,
    told_ppo,
    told_preference,
    told_prepare,
    told_revise,
    told_sft,
)
from cai_dist.tracking.atomic import sha256_json, write_text
from cai_dist.tracking.console import Console
from cai_dist.tracking.lock import RunLock
from cai_dist.tracking.manifest import Manifest
from cai_dist.tracking.metrics import Tracker
from cai_dist.tracking.run_folder import RunFolder


@dataclass(frozen=True)
class StageSpec:
    """A stage as the pipeline sees it."""

    name: str
    """Name in the run file, the run folder, the manifest and on the command line."""
    execute: Callable[[RunContext], list[Path]]
    """Does the work, resuming what it finds; returns what it wrote."""
    settings: Callable[[RunConfig], dict[str, Any]]
    """The settings that affect its result."""
    inputs: Callable[[RunContext], list[Path]]
    """Files and folders it reads."""
    summary: Callable[[RunContext], StageSummary] = lambda ctx: StageSummary("")
    """What it says of its result, from what it has written."""
    gate: Callable[[RunContext], list[str]] = lambda ctx: []
    """Why nothing must be built upon its result, a line each."""
    beside: Callable[[RunFolder], Path | None] = lambda paths: None
    """What it writes beside its folder and goes with that when it is set aside."""


_SPECS = (
    StageSpec(PREPARE, prepare.execute, prepare.settings, prepare.inputs, told_prepare),
    StageSpec(EXPAND, expand.execute, expand.settings, expand.inputs, told_expand),
    StageSpec(REVISE, revise.execute, revise.settings, revise.inputs, told_revise),
    StageSpec(SFT, sft.execute, sft.settings, sft.inputs, told_sft),
    StageSpec(FEEDBACK, feedback.execute, feedback.settings, feedback.inputs, told_feedback, gate_feedback),
    StageSpec(PREFERENCE, preference.execute, preference.settings, preference.inputs, told_preference, gate_preference),
    StageSpec(PPO, ppo.execute, ppo.settings, ppo.inputs, told_ppo),
    StageSpec(DPO, dpo.execute, dpo.settings, dpo.inputs, told_dpo),
    StageSpec(
        EVALUATE,
        evaluate.execute,
        evaluate.settings,
        evaluate.inputs,
        told_evaluate,
        beside=lambda paths: paths.evaluation,
    ),
)
STAGE_SPECS: dict[str, StageSpec] = {spec.name: spec for spec in _SPECS}
"""Every stage of the pipeline. The order of a run is that of `cai_dist.config.stages`."""


def stage_specs(config: RunConfig) -> dict[str, StageSpec]:
    """The stages of the pipeline and the run's own."""
    return STAGE_SPECS | {stage.name: _own(stage) for stage in config.own_stages}


def _own(stage: OwnStage) -> StageSpec:
    return StageSpec(
        stage.name,
        lambda ctx: execute_own(ctx, stage),
        lambda config: own_settings(stage),
        lambda ctx: own_inputs(ctx, stage),
    )


def run_pipeline(
    config: RunConfig,
    console: Console,
    should_stop: Callable[[], bool] = lambda: False,
    on_cluster_start: Callable[[], None] = lambda: None,
) -> Path:
    """Run every stage that is not finished; returns the run folder. Raises CaiError, before anything else for files
    that are wanted at the end and for GPUs of PPO that the cluster does not have."""
    evaluate.check_files(config)
    with _open(config, console, should_stop, on_cluster_start) as run:
        specs, names = stage_specs(config), (PREPARE, *config.stages)
        # The stages before PPO may take hours: GPUs that the cluster does not have are missed before them.
        ahead = names[: names.index(PPO) + 1] if PPO in names and on_gpus(config.ppo) else ()
        if not all(_finished(run, specs[name]) for name in ahead):
            check_placement(run)
        for i, name in enumerate(names):
            run_one(run, specs[name], names[:i])
        evaluate.show(run)
        return run.run_dir


def run_stage(
    config: RunConfig,
    name: str,
    console: Console,
    should_stop: Callable[[], bool] = lambda: False,
    on_cluster_start: Callable[[], None] = lambda: None,
) -> Path:
    """Run one stage (and `prepare`, where it is not finished). Raises ConfigError where an earlier stage is missing or
    the run has no such stage."""
    if name == EXPAND and not config.expand.any_wanted:
        raise ConfigError("expand.prompts=0: this run writes no new prompts; set expand.prompts (or helpful) above 0")
    if name not in config.stages:
        raise ConfigError(
            f"alignment={config.alignment}: stage {name} is no part of this run, whose stages are "
            f"{', '.join(config.stages)}; choose one of them or another alignment"
        )
    evaluate.check_files(config)
    with _open(config, console, should_stop, on_cluster_start) as run:
        specs = stage_specs(config)
        run_one(run, specs[PREPARE])
        earlier = config.stages[: config.stages.index(name)]
        for before in earlier:
            if not _finished(run, specs[before]):
                raise ConfigError(
                    f"stage {name} needs the result of stage {before}, which {run.run_dir} does not hold for these "
                    f"settings; run `cai-dist stage {before} …` or `cai-dist run …` first"
                )
        run_one(run, specs[name], earlier)
        if name == EVALUATE:
            evaluate.show(run)
        check_gates(run, [name])
        return run.run_dir


def run_one(ctx: RunContext, stage: StageSpec, earlier: Sequence[str] = ()) -> None:
    """Run `stage` unless it is finished, and tell how it went; the manifest always says how it stands.

    Raises GateFailed, before anything is moved or started, where one of the `earlier` stages has not passed its gate.
    """
    fingerprint, inputs = _fingerprint(ctx, stage)
    if ctx.manifest.is_done(stage.name, fingerprint):
        ctx.console.say(f"{stage.name}: done before, skipped")
        return
    check_gates(ctx, earlier)
    _set_aside(ctx, stage, fingerprint)
    ctx.check_stop()
    ctx.console.stage(stage.name)
    write_text(ctx.paths.config, dump_run(ctx.config))
    ctx.manifest.begin(stage.name, fingerprint, inputs)
    started = time.monotonic()
    try:
        outputs = stage.execute(ctx)
    except Interrupted:
        raise
    except Exception as error:
        ctx.manifest.failed(stage.name, f"{type(error).__name__}: {error}")
        raise
    ctx.manifest.done(stage.name, outputs, time.monotonic() - started)
    told = stage.summary(ctx)
    if told.line:
        ctx.console.say(f"{stage.name}: {told.line}")
    for warning in told.warnings:
        ctx.console.warn(f"{stage.name}: {warning}")


def check_gates(ctx: RunContext, names: Sequence[str]) -> None:
    """Raise GateFailed, a line for each, where the result of a stage of these names must not be built upon."""
    specs = stage_specs(ctx.config)
    enforce([line for name in names for line in specs[name].gate(ctx)])


def _finished(ctx: RunContext, stage: StageSpec) -> bool:
    return all(p.exists() for p in stage.inputs(ctx)) and ctx.manifest.is_done(stage.name, _fingerprint(ctx, stage)[0])


def _fingerprint(ctx: RunContext, stage: StageSpec) -> tuple[str, dict[str, str]]:
    inputs = ctx.manifest.hashes(stage.inputs(ctx))
    whole = {
        "stage": stage.name,
        "settings": stage.settings(ctx.config),
        "seed": ctx.config.seed,
        "constitution": ctx.constitution.sha256,
        "inputs": inputs,
    }
    return sha256_json(whole), inputs


def _set_aside(ctx: RunContext, stage: StageSpec, fingerprint: str) -> None:
    """Move the folder of a stage that was begun with other settings or inputs out of the way; nothing is deleted."""
    begun = ctx.manifest.fingerprint(stage.name)
    folder = ctx.paths.stage(stage.name)
    if begun is None or begun == fingerprint or not folder.exists():
        return
    if (beside := stage.beside(ctx.paths)) and beside.exists():
        beside.rename(folder / beside.name)
    number = 1
    while (aside := ctx.paths.aside(stage.name, number)).exists():
        number += 1
    folder.rename(aside)
    ctx.tracker.rewind(stage.name, -1)
    ctx.console.say(f"{stage.name}: settings or inputs have changed; the earlier result is kept in {aside.name}")


@contextmanager
def _open(
    config: RunConfig, console: Console, should_stop: Callable[[], bool], on_cluster_start: Callable[[], None]
) -> Iterator[RunContext]:
    check_strategies(config)
    constitution = run_constitution(config)
    # Absolute: the workers of a cluster that was there before have another current directory.
    run_dir = (Path(config.runs_dir) / config.name).absolute()
    run_dir.mkdir(parents=True, exist_ok=True)
    with RunLock(run_dir):
        manifest = Manifest(run_dir)
        manifest.set_constitution(**constitution.note(config.without_principles))
        tracker = Tracker(run_dir, config.tracking, config.model_dump(mode="json"), console.warn)
        run = RunContext(config, run_dir, manifest, tracker, console, constitution, should_stop, on_cluster_start)
        try:
            yield run
        finally:
            run.close()
            tracker.close()
