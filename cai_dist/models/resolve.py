"""Models by what a run file calls them, as something that transformers can load."""

from __future__ import annotations

import re
from pathlib import Path

from cai_dist.config.training import Dtype
from cai_dist.errors import ConfigError
from cai_dist.models.adapter import CONFIG_FILE

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve_model(source: str, dtype: Dtype, world_model: Path | None) -> str:
    """A folder in the Hugging Face layout, or a hub name, for a `models.*` value.

    `world` is `world_model`, the micro-world's pretrained model; `smollm2` is converted on first use; an existing
    folder must hold a whole model with its config.json and becomes absolute (workers may start elsewhere); anything
    else must look like a hub name and is handed on as it is. Raises ConfigError.
    """
    if source == "world":
        if world_model is None:
            raise ConfigError("models: `world` was asked for, but this run has not made the micro-world's model")
        return str(world_model)
    if source == "smollm2":
        from cai_dist.models.smollm2 import smollm2_folder

        return str(smollm2_folder(dtype))
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"models: {source} holds no config.json; give a folder in the Hugging Face layout")
        if (folder / CONFIG_FILE).is_file():
            raise ConfigError(f"models: {source} holds an adapter ({CONFIG_FILE}); merge it and give the whole model")
        return str(folder.absolute())
    if folder.exists() or not _HUB_NAME.fullmatch(source):
        raise ConfigError(f"models: {source!r} is neither world, smollm2, a model folder nor a hub name like org/name")
    return source
