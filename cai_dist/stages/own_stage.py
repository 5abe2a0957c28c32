"""Stages of one's own (`own_stages`): found, run, and what they give looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from cai_dist.config.own_stages import KEY, OwnStage
from cai_dist.errors import CaiError, one_line
from cai_dist.registry import Signature, find_object, source_note
from cai_dist.stages.context import RunContext


class StageWork(Protocol):
    """The work of a stage: a function that is called once, with `args` as keywords."""

    def __call__(self, ctx: RunContext, **args: Any) -> Sequence[Path]:
        """Do the work, going on with what is in `ctx.folder(NAME)` where an earlier call was interrupted; returns the
        files and folders of the run that it wrote. `ctx.paths` has those of the other stages, `ctx.log` takes numbers,
        `ctx.check_stop` is to be called now and then."""
        ...


def find_work(stage: OwnStage) -> StageWork:
    """What a stage of one's own names. Raises ConfigError where it is not there or does not take its arguments."""
    found: StageWork = find_object(stage.use, f"{KEY}.{stage.name}", Signature(("ctx",), tuple(stage.args)))
    return found


def own_settings(stage: OwnStage) -> dict[str, Any]:
    """What decides its result: its arguments, and the source of the module that it is in."""
    return {"args": stage.args, "source": source_note(stage.use, f"{KEY}.{stage.name}")}


def own_inputs(ctx: RunContext, stage: OwnStage) -> list[Path]:
    """What the stage that it follows has written, but for the report, which changes with the run."""
    return [path for path in ctx.manifest.outputs(stage.after) if path != ctx.paths.report]


def execute_own(ctx: RunContext, stage: OwnStage) -> list[Path]:
    """Do its work. Raises CaiError, one line that names the stage, for an exception of its own and for anything but
    files and folders of the run; what a stage raises of this package's errors goes through."""
    ctx.folder(stage.name)
    work: Callable[..., Any] = find_work(stage)
    try:
        written = [Path(path) for path in work(ctx, **stage.args)]
    except CaiError:
        raise
    except Exception as error:
        raise CaiError(f"stage {stage.name} ({stage.use}): {one_line(error)}") from error
    for path in written:
        if not path.exists() or not path.resolve().is_relative_to(ctx.run_dir.resolve()):
            raise CaiError(
                f"stage {stage.name} ({stage.use}): gave {path}, which is no file of the run {ctx.run_dir}; it must "
                "give what it wrote there"
            )
    return written
