"""wandb as a second place for metrics. A failure here never ends a run: one warning, and metrics.jsonl goes on."""

from __future__ import annotations

import json
import math
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from cai_dist.config.run import TrackingConfig
from cai_dist.tracking.atomic import write_text
from cai_dist.tracking.run_folder import RunFolder

WandbMode = Literal["online", "offline", "off"]
INIT_TIMEOUT = 60.0
"""Seconds that wandb may take to reach its server."""
FINISH_TIMEOUT = 120.0
"""Seconds that the end of a run waits for uploads; `wandb sync` sends what is left."""


def wandb_mode(config: TrackingConfig) -> WandbMode:
    """What `auto` means here: WANDB_MODE where it is set, else online with a WANDB_API_KEY and offline without."""
    if config.wandb != "auto":
        return config.wandb
    wish = os.environ.get("WANDB_MODE", "").lower()
    if wish == "disabled":
        return "off"
    if wish in ("online", "offline"):
        return "online" if wish == "online" else "offline"
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


class WandbSink:
    """One wandb run. wandb wants its own step to grow, while a resumed stage goes back: each stage has its own axis."""

    def __init__(self, run: Any, warn: Callable[[str], None]) -> None:
        self._run, self._warn = run, warn
        self._stages: set[str] = set()

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """Send one line; names become `stage/name`. Values that are not finite are left out."""
        if self._run is None:
            return
        try:
            if stage not in self._stages:
                self._run.define_metric(f"{stage}/step")
                self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
                self._stages.add(stage)
            sent = {f"{stage}/{name}": value for name, value in numbers.items() if math.isfinite(value)}
            self._run.log({**sent, f"{stage}/step": step})
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Finish the wandb run."""
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:
            self._give_up(error)
        self._run = None

    def _give_up(self, error: Exception) -> None:
        self._run = None
        self._warn(_refusal(error))


def open_wandb(
    run_dir: Path, config: TrackingConfig, run_config: Mapping[str, Any], warn: Callable[[str], None] | None = None
) -> WandbSink | None:
    """Start a wandb run, or resume it (its id is in `run_dir/wandb/run-id`); None where it is off or does not start."""
    mode = wandb_mode(config)
    if mode == "off":
        return None
    warn = warn or _print_warning
    try:
        import wandb

        folder = RunFolder(run_dir).wandb
        folder.mkdir(parents=True, exist_ok=True)
        # No console capture, no code, no description of the machine: numbers and the configuration are what is sent.
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
        )
        run = wandb.init(
            project=config.project,
            name=str(run_config.get("name", run_dir.name)),
            id=_run_id(folder / "run-id"),
            resume="allow",
            mode=mode,
            dir=str(run_dir),
            config=json.loads(json.dumps(run_config)),
            settings=settings,
        )
    except Exception as error:
        warn(_refusal(error))
        return None
    return WandbSink(run, warn)


def _run_id(path: Path) -> str:
    if path.exists() and (known := path.read_text(encoding="utf-8").strip()):
        return known
    fresh = uuid.uuid4().hex[:16]
    write_text(path, fresh + "\n")
    return fresh


def _refusal(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"wandb is out of use from here on ({type(error).__name__}: {text}); metrics.jsonl goes on"


def _print_warning(text: str) -> None:
    print(f"cai-dist: warning: {text}", file=sys.stderr)
