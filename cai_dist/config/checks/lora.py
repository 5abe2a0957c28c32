"""Adapters whose folder no later stage could read, told before the first stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cai_dist.config.run import RunConfig
from cai_dist.config.stages import PREFERENCE, SFT


def lora_problems(config: RunConfig) -> Iterator[str]:
    """One line for each adapter whose base the run itself does not keep."""
    lora = config.loras.get(PREFERENCE)
    if lora is not None and lora.save == "adapter" and config.data.ranked_answers.source != "none":
        yield (
            "preference.lora.save=adapter: must be merged with data.ranked_answers; the adapter would belong to the "
            "pretrained preference model, which is not kept"
        )


def base_problems(config: RunConfig) -> Iterator[str]:
    """One line for each adapter that would belong to a model of the hub: what is read is a local base. Looks whether
    `models.pretrained` is a folder."""
    source = config.models.pretrained
    if source in ("world", "smollm2") or Path(source).expanduser().is_dir():
        return
    for stage in (SFT, PREFERENCE):
        lora = config.loras.get(stage)
        if lora is None or lora.save != "adapter" or (stage == PREFERENCE and config.preference.init == "sl"):
            continue
        yield (
            f"{stage}.lora.save=adapter: must be merged with models.pretrained={source}, a hub name; an adapter "
            "is read with a base in a local folder: name that folder, or set save=merged"
        )
