"""Adapters whose folder no later stage could read, and quantised bases that cannot be, told before the first stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from cai_dist.config.run import RunConfig
from cai_dist.config.stages import PREFERENCE, SFT
from cai_dist.config.training import ShardingConfig


def lora_problems(config: RunConfig, shardings: Iterable[tuple[str, ShardingConfig]]) -> Iterator[str]:
    """One line for each adapter whose base the run itself does not keep, and for each quantised base under ZeRO-3;
    `shardings`: key -> section, of all that is spread over ranks."""
    yield from _cut_bases(config, shardings)
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


def missing_quantization(config: RunConfig) -> Iterator[str]:
    """What to do where bitsandbytes is needed and is not installed, in a line. Imports nothing."""
    if find_spec("bitsandbytes") is not None:
        return
    for stage, lora in config.loras.items():
        if lora.quantization != "none":
            yield (
                f"{stage}.lora.quantization={lora.quantization}: needs the package bitsandbytes: "
                'pip install -c constraints.txt -e ".[quant]"; or set it to none'
            )


def _cut_bases(config: RunConfig, shardings: Iterable[tuple[str, ShardingConfig]]) -> Iterator[str]:
    idle = {f"ppo.{role}" for role in config.ppo.roles if role not in config.ppo.trained_roles}
    if config.data.ranked_answers.source == "none":
        idle.add("preference.pretraining.train.sharding")
    for key, sharding in shardings:
        stage = key.partition(".")[0]
        lora = config.loras.get(stage)
        if lora is None or lora.quantization == "none" or sharding.zero < 3 or key in idle:
            continue
        yield (
            f"{key}.zero=3: must be 0, 1 or 2 with {stage}.lora.quantization={lora.quantization}; ZeRO-3 cuts weights "
            "while they are loaded, before they could be quantised"
        )
