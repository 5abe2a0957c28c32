"""What a model of the Python API is loaded from, a folder, a hub name or a run, and the settings that hold for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike, fspath
from pathlib import Path
from typing import Literal

from cai_dist.config.loading.load import default_run, load_run
from cai_dist.config.run import RunConfig
from cai_dist.config.stages import PREFERENCE, PREPARE
from cai_dist.constitution import Constitution, load_constitution, run_constitution
from cai_dist.errors import DataError
from cai_dist.models.limits import context_problem
from cai_dist.models.load import load_config
from cai_dist.models.resolve import resolve_model
from cai_dist.stages.execution.model_paths import model_of_run
from cai_dist.tracking.manifest import read_manifest
from cai_dist.tracking.run_folder import RunFolder

Source = str | PathLike[str]
"""A model folder, a hub name, or the folder of a run."""
ModelRole = Literal["assistant", "feedback", "preference"]
"""Which of its models a run gives."""
LONGEST = 8192
"""Tokens of a sequence at most where no run says `models.context`: what a model takes may be more than fits in
memory."""


@dataclass(frozen=True)
class ModelSource:
    """A model that can be loaded, with the settings and the constitution that it is used under."""

    path: str
    """A folder in the Hugging Face layout, or a hub name."""
    config: RunConfig
    constitution: Constitution
    day: str
    """YYYY-MM-DD, for chat templates that ask for the date."""


def find_model(
    source: Source,
    role: ModelRole,
    overrides: Sequence[str] = (),
    run: Source | None = None,
    constitution: Constitution | Source | None = None,
) -> ModelSource:
    """The model at `source`; of a run's folder, the one that plays `role` there.

    Settings are those of `run` (the folder of a run, or a run file), by default those of `source` where it is a run,
    else the defaults with `models.context` as long as the model takes, and `models.layout=padded`, which every model
    can do. `overrides` ("key.sub=value") are laid over them, `constitution` takes the place of the run's.
    Raises ConfigError, DataError.
    """
    folder = Path(source).expanduser()
    own = is_run(folder)
    settings = folder if own and run is None else None if run is None else Path(run).expanduser()
    day = datetime.now(UTC).date().isoformat()
    if settings is None:
        path = _resolved(source)
        config = default_run("python", [*_fitting(path), *overrides])
    else:
        if is_run(settings):
            day, settings = str(read_manifest(settings).get("date", day)), RunFolder(settings).config
        config = load_run(settings, overrides)
        path = _model_of(folder, config, role) if own else _resolved(source)
    return ModelSource(path, config, _constitution(constitution, config), day)


def is_run(folder: Path) -> bool:
    """Whether `folder` is that of a run: it holds manifest.json and config.yaml."""
    paths = RunFolder(folder)
    return paths.manifest.is_file() and paths.config.is_file()


def _resolved(source: Source) -> str:
    name = fspath(source)
    folder = Path(name).expanduser()
    # A folder that holds an adapter loads, too, with its base.
    return str(folder.absolute()) if folder.is_dir() else resolve_model(name, "fp32", None)


def _model_of(folder: Path, config: RunConfig, role: ModelRole) -> str:
    paths = RunFolder(folder)
    stage, path = (PREFERENCE, str(paths.preference_model)) if role == "preference" else (PREPARE, "")
    try:
        path = path or model_of_run(paths, config, role)
    except (OSError, KeyError):
        path = ""
    if not path or (stage == PREFERENCE and not Path(path).is_dir()):
        why = f"stage {stage} has not made it"
        if role == "feedback" and config.feedback.elsewhere:
            why = f"its answers come from {config.feedback.model or 'a server'}"
        raise DataError(f"{folder}: this run holds no {role} model: {why}; give the folder of a model")
    return path


def _constitution(given: Constitution | Source | None, config: RunConfig) -> Constitution:
    if given is None:
        return run_constitution(config)
    return given if isinstance(given, Constitution) else load_constitution(fspath(given))


def _fitting(path: str) -> list[str]:
    """Settings under which a model can be used that no run describes."""
    config = load_config(path)
    context = min(getattr(config.get_text_config(), "max_position_embeddings", None) or LONGEST, LONGEST)
    while context > 1 and context_problem(config, context, None):  # rotary embeddings that change with the length
        context //= 2
    return [f"models.context={context}", "models.layout=padded"]
