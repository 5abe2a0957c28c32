"""Where the models of a run lie: those it was given and those it keeps on the way."""

from __future__ import annotations

import json
from pathlib import Path

from cai_dist.config.run import RunConfig
from cai_dist.stages.context import RunContext
from cai_dist.tracking.run_folder import RunFolder


def model_path(ctx: RunContext, role: str) -> str:
    """The folder or hub name of the model that plays `role` (assistant, pretrained, feedback)."""
    return model_of_run(ctx.paths, ctx.config, role)


def model_of_run(paths: RunFolder, config: RunConfig, role: str) -> str:
    """The folder or hub name of the model of a run that plays `role`, from its folder and settings. Raises OSError
    where `prepare` is not done, KeyError where the run has no model of that role."""
    if role == "feedback" and config.feedback_is_sl:
        return str(paths.sl_model)
    resolved = json.loads(paths.models.read_text(encoding="utf-8"))
    return openable(paths.root, str(resolved[role]["path"]))


def path_of(ctx: RunContext, path: str) -> str:
    """A path of `models.json` as one that can be opened."""
    return openable(ctx.run_dir, path)


def openable(run_dir: Path, path: str) -> str:
    """A path below the folder of a run, another path, or a hub name, as what can be opened."""
    inside = run_dir / path
    return str(inside) if inside.is_dir() else path


def snapshots(ctx: RunContext) -> dict[int, Path]:
    """The models that this run keeps of PPO's policy on its way, by the number of finished iterations."""
    due = (i for i in range(1, ctx.config.ppo.iterations) if ctx.config.ppo.snapshot_due(i))
    return {i: ctx.paths.snapshot(i) for i in due}
