"""Whole runs from Python: the pipeline and its stages, with the report that the command line writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cai_dist.config.run import RunConfig
from cai_dist.config.stages import EVALUATE
from cai_dist.errors import GateFailed
from cai_dist.tracking.console import Console
from cai_dist.tracking.run_folder import RunFolder

# The stages are imported when a run starts: the command line answers a mistake before that.


def run_pipeline(config: RunConfig) -> Path:
    """Run every stage of a run that is not finished and write its report; returns the folder of the run.

        config = cai_dist.load_run("launch/runs/demo.yaml", ["name=mine"])
        folder = cai_dist.run_pipeline(config)

    It starts Ray, as `cai-dist run` does, and shows what it does as `tracking.console` says. An interrupted call goes
    on where it was when it is made again. Raises CaiError: ConfigError and DataError before any work, GateFailed where
    a result must not be built upon, others at run time.
    """
    return _run(config, None)


def run_stage(config: RunConfig, name: str) -> Path:
    """Run one stage of a run, such as `revise`, whose earlier stages are done, and write the report; returns the folder
    of the run.

        cai_dist.run_stage(cai_dist.load_run("launch/runs/demo.yaml"), "revise")

    Stage `prepare` runs first where it is not done. Raises ConfigError where an earlier stage is missing or the run has
    no such stage, and CaiError as `run_pipeline` does.
    """
    return _run(config, name)


def run_and_report(
    config: RunConfig,
    stage: str | None,
    console: Console,
    should_stop: Callable[[], bool] = lambda: False,
    on_cluster_start: Callable[[], None] = lambda: None,
) -> Path:
    """Run one stage, or with None the pipeline, write the report and hold the run against its gates; returns the folder
    of the run. The report is written where a gate is not passed, too. Raises CaiError."""
    from cai_dist.report import write_report
    from cai_dist.stages.evaluation.gate import enforce_gate
    from cai_dist.stages.pipeline import run_pipeline as run_stages
    from cai_dist.stages.pipeline import run_stage as run_one_stage

    try:
        if stage is None:
            run_dir = run_stages(config, console, should_stop, on_cluster_start)
        else:
            run_dir = run_one_stage(config, stage, console, should_stop, on_cluster_start)
    except GateFailed:
        console.say(f"report: {write_report(Path(config.runs_dir) / config.name, config.stages)}")
        raise
    # Once more now that the manifest holds the time of the last stage, too.
    console.say(f"report: {write_report(run_dir, config.stages)}")
    if stage in (None, EVALUATE):
        enforce_gate(RunFolder(run_dir).evaluation)
    return run_dir


def _run(config: RunConfig, stage: str | None) -> Path:
    from cai_dist.config.checks.run import check_run
    from cai_dist.constitution.check import check_constitution

    check_run(config, ready=True)
    check_constitution(config)
    with Console(config.tracking.console) as console:
        return run_and_report(config, stage, console)
