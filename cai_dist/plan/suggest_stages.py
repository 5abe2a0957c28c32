"""What the stages beside PPO could have instead: all GPUs of the machines, and the lowest stage of ZeRO that fits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cai_dist.config.run import RunConfig
from cai_dist.config.stages import GENERATING, PPO
from cai_dist.config.training import ShardingConfig
from cai_dist.errors import ConfigError
from cai_dist.plan.build import RunPlan, StagePlan
from cai_dist.plan.machines import place
from cai_dist.plan.roles import Assumed, other_stages
from cai_dist.plan.suggest import Suggestion
from cai_dist.plan.ways import OFFLOAD, SECTIONS, nested, sharding_at, updated


def suggest_stages(plan: RunPlan, assumed: Assumed) -> list[Suggestion]:
    """One for each stage but PPO that does not fit with head-room, or leaves GPUs without work; none for those that are
    well as they are. Without GPUs, or where their memory is not known, none."""
    machines, config = plan.machines, plan.config
    if not machines.gpus or machines.gpu_memory is None or not config.cluster.gpus:
        return []
    found = []
    for one in plan.stages:
        if one.stage.name == PPO:
            continue
        made = _of_training(plan, one, assumed) if one.stage.name in SECTIONS else _of_engines(plan, one)
        found += [made] if made is not None else []
    return found


def _of_training(plan: RunPlan, one: StagePlan, assumed: Assumed) -> Suggestion | None:
    name, own = one.stage.name, sharding_at(plan.config, SECTIONS[one.stage.name])
    total = _workers(plan) // own.sequence_parallel * own.sequence_parallel
    well = _fits(one, plan)
    if well and own.ranks >= total:
        return None
    for ranks, changes in _changes(own, total) if total else ():
        other = updated(plan.config, nested(SECTIONS[name], changes | {"ranks": ranks}))
        made = _planned(other, plan, name, assumed)
        if made is not None and _fits(made, plan):
            now = f"fits as it is, and is {ranks / own.ranks:.2g} times as fast with"
            now = now if well else "does not leave 10% free as it is; it does with"
            lines = _yaml(SECTIONS[name], {"ranks": ranks} | changes)
            return Suggestion(lines, f"{name} {now} {ranks} ranks, {_said(changes)}")
    return None if well else Suggestion("", f"{name}: no ranks or stage of ZeRO on these GPUs leave 10% free")


def _changes(own: ShardingConfig, total: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Ranks and settings, the fastest first: all GPUs, then the least communication, then larger micro-batches; offload
    to the host last."""
    for small in (False, True) if own.micro_batch > 1 and own.max_tokens_per_micro_batch is None else (False,):
        for stage in (1, 2, 3):
            size: dict[str, Any] = {"micro_batch": 1} if small else {}
            yield total, {"zero": stage, **({"ds_config": None} if own.ds_config else {}), **size}
    yield total, {"zero": 3, "ds_config": OFFLOAD}


def _of_engines(plan: RunPlan, one: StagePlan) -> Suggestion | None:
    """Workers of the stages that generate, where there are GPUs for more."""
    config, total = plan.config, _workers(plan, plan.config.engine.processes)
    few = [name for name in GENERATING if name in config.stages and getattr(config, name).workers < total]
    if not few or not _fits(one, plan):
        return None
    lines = "".join(f"{name}: {{workers: {total}}}\n" for name in few)
    return Suggestion(lines, f"{', '.join(few)} leave GPUs without work; {total} workers find one each")


def _workers(plan: RunPlan, each: int = 1) -> int:
    """How many workers of `each` process a stage but PPO finds GPUs and CPUs for."""
    machines, cluster = plan.machines, plan.config.cluster
    on_gpus = machines.nodes * int(machines.gpus / (each * cluster.gpus) + 1e-9)
    on_cpus = on_gpus if machines.cpus is None else machines.nodes * int(machines.cpus / (each * cluster.cpus) + 1e-9)
    return max(1, min(on_gpus, on_cpus))


def _planned(config: RunConfig, plan: RunPlan, name: str, assumed: Assumed) -> StagePlan | None:
    try:
        stages = other_stages(config, plan.shapes, assumed, plan.machines)
    except ConfigError:
        return None
    stage = next(one for one in stages if one.name == name)
    return StagePlan(stage, place(stage.workers, stage.groups, plan.machines))


def _fits(one: StagePlan, plan: RunPlan) -> bool:
    enough = one.loads.needed_gpus <= plan.machines.nodes * plan.machines.gpus
    return enough and all(load.verdict in ("fits", None) for load in one.loads.all)


def _said(changes: dict[str, Any]) -> str:
    micro = f", micro_batch: {changes['micro_batch']}" if "micro_batch" in changes else ""
    return (changes.get("ds_config") or f"zero{changes['zero']}") + micro


def _yaml(path: tuple[str, ...], changes: dict[str, Any]) -> str:
    inner = ", ".join(f"{key}: {'null' if value is None else value}" for key, value in changes.items())
    return f"{path[0]}: {'{' + ': {'.join(path[1:])}: {{{inner}}}{'}' * (len(path) - 1)}\n"
