"""What a run asks of the machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai_dist.config.checks.run import PACKAGED_DS_CONFIGS
from cai_dist.config.run import RunConfig
from cai_dist.config.stages import PPO, SUPERVISED
from cai_dist.config.training import ShardingConfig


@dataclass(frozen=True)
class Needs:
    """`threads` of one worker; `gpus`: workers ask for some; `compiler`: why one is needed, "" where none is;
    `packages`: beyond those always needed; `shared`: (label, path) that every node must see."""

    threads: int = 1
    gpus: bool = False
    compiler: str = ""
    packages: tuple[str, ...] = ()
    shared: tuple[tuple[str, str], ...] = ()


def needs_of(config: RunConfig, cache: Path) -> Needs:
    """What this run needs; `cache` is the folder that holds converted models."""
    place = config.ppo.placement
    gpus = config.cluster.gpus > 0 or any(getattr(place, role).gpus > 0 for role in config.ppo.roles)
    shared = [("run folder", str((Path(config.runs_dir) / config.name).absolute()))]
    if "smollm2" in config.own_models.values():
        shared.append(("cache", str(cache)))  # workers on all nodes read the converted model there
    packages = ["vllm"] if config.engine.backend == "vllm" else []
    if config.tracking.wandb == "online":
        packages.append("wandb")
    return Needs(config.cluster.first_threads, gpus, _compiled(config), tuple(packages), tuple(shared))


def _compiled(config: RunConfig) -> str:
    if config.engine.backend == "vllm":
        return "engine.backend=vllm compiles kernels when it starts"
    for key, sharding in _shardings(config):
        if sharding.ds_config not in (None, *PACKAGED_DS_CONFIGS) and not _torch_adam(str(sharding.ds_config)):
            return f"{key}.ds_config has DeepSpeed's own Adam, which is compiled when it is first used"
    return ""


def _shardings(config: RunConfig) -> Iterator[tuple[str, ShardingConfig]]:
    for stage in SUPERVISED:
        if stage in config.stages:
            yield f"{stage}.train.sharding", getattr(config, stage).train.sharding
    if PPO in config.stages:
        for role in config.ppo.trained_roles:
            yield f"ppo.{role}", getattr(config.ppo, role)


def _torch_adam(path: str) -> bool:
    """Whether a DeepSpeed JSON takes torch's optimiser, as the packaged ones do; one that cannot be read is `check`'s
    to refuse."""
    try:
        node: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        for key in ("optimizer", "params", "torch_adam"):
            node = node.get(key, {})
    except (OSError, ValueError, AttributeError):
        return True
    return node is True
