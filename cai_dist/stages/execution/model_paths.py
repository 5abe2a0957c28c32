"""Where the models of a run lie: those it was given and those it keeps on the way."""

from __future__ import annotations

import json
from pathlib import Path

from cai_dist.stages.context import RunContext


def model_path(ctx: RunContext, role: str) -> str:
    """The folder or hub name of the model that plays `role` (assistant, pretrained, feedback)."""
    if role == "feedback" and ctx.config.feedback_is_sl:
        return str(ctx.paths.sl_model)
    resolved = json.loads(ctx.paths.models.read_text(encoding="utf-8"))
    return path_of(ctx, str(resolved[role]["path"]))


def path_of(ctx: RunContext, path: str) -> str:
    """A path of `models.json` as one that can be opened."""
    inside = ctx.run_dir / path
    return str(inside) if inside.is_dir() else path


def snapshots(ctx: RunContext) -> dict[int, Path]:
    """The models that this run keeps of PPO's policy on its way, by the number of finished iterations."""
    due = (i for i in range(1, ctx.config.ppo.iterations) if ctx.config.ppo.snapshot_due(i))
    return {i: ctx.paths.snapshot(i) for i in due}
