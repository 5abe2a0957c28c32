"""`cai-dist check --deep`: what `prepare` tries of the models, without a run and without the micro-world."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from cai_dist.config.run import RunConfig, TrackingConfig
from cai_dist.constitution import run_constitution
from cai_dist.models.resolve import resolve_model
from cai_dist.stages.ai_feedback.option_tokens import check_tokens
from cai_dist.stages.comparisons.pm_pretraining import check_label_words
from cai_dist.stages.context import RunContext
from cai_dist.stages.preflight.rehearsal import Rehearsal, rehearse
from cai_dist.tracking.console import Console
from cai_dist.tracking.manifest import Manifest
from cai_dist.tracking.metrics import Tracker


def check_models(config: RunConfig, console: Console) -> Rehearsal:
    """Rehearse every model of `config` that is not made by the run; configurations and tokenizers of hub names are
    downloaded, weights are not. Warnings of the checks go to `console`."""
    found, paths = Rehearsal(), {}
    for role, source in config.own_models.items():
        if source == "world":
            continue
        path = found.attempt(f"models.{role}={source}", partial(_resolved, config, source))
        if path is not None:
            paths[role] = path
    with TemporaryDirectory(prefix="cai_dist-") as folder:
        off = TrackingConfig(wandb="off")
        tracker = Tracker(Path(folder), off, {})
        run = RunContext(
            config, Path(folder), Manifest(Path(folder)), tracker, console, run_constitution(config), lambda: False
        )
        try:
            tried = rehearse(run, paths)
            says = paths.get("pretrained" if config.feedback_is_sl else "feedback")
            if not config.feedback.elsewhere and says is not None and not tried.problems:
                tried.attempt(
                    f"models.{'feedback' if 'feedback' in paths else 'pretrained'}", lambda: check_tokens(run, says)
                )
            if "pretrained" in paths and not tried.problems:
                tried.attempt("models.pretrained", lambda: check_label_words(run, paths["pretrained"]))
        finally:
            tracker.close()
    found.problems += tried.problems
    found.notes += tried.notes
    return found


def _resolved(config: RunConfig, source: str) -> str:
    return resolve_model(source, config.models.dtype, None)
