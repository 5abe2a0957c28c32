"""The smallest change with which a run fits with head-room: ZeRO stage, placement, ranks. Every candidate is planned as
the run itself is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cai_dist.config.run import RunConfig
from cai_dist.errors import ConfigError
from cai_dist.plan.build import RunPlan, StagePlan
from cai_dist.plan.machines import Machines, place
from cai_dist.plan.roles import Assumed, ppo_stage
from cai_dist.plan.ways import OFFLOAD, updated

STAGES = ("zero1", "zero2", "zero3", OFFLOAD)
"""From the least communication to the least memory, by the names of the packaged DeepSpeed files."""


@dataclass(frozen=True)
class Suggestion:
    """YAML lines to paste, and one line of why. `lines` are empty where the run can stay as it is, or nothing fits."""

    lines: str
    why: str


def suggest(plan: RunPlan, assumed: Assumed) -> Suggestion | None:
    """A suggestion for the stage PPO; None where the run has none or the memory of its machines is not known."""
    machines, config = plan.machines, plan.config
    known = machines.gpu_memory if machines.gpus else machines.cpu_memory
    if plan.ppo is None or known is None or (_uses(config) and not machines.gpus):
        return None
    as_it_is = _tried(config, plan, assumed)
    if as_it_is is not None and _uses(config) == bool(machines.gpus):
        lower = next((name for name in STAGES[:-1] if _tried(_staged(config, name), plan, assumed)), None)
        now = max(_number(config, role) for role in config.ppo.trained_roles)
        better = lower is not None and int(lower[4]) < now
        why = f"; {lower} would do, with less communication" if better else ""
        return Suggestion("", f"PPO fits as it is, with 10% of every device free{why}")
    for what, other in _candidates(config, machines):
        found = _tried(other, plan, assumed)
        if found is not None:
            return Suggestion(_yaml(other), f"{what}: the first that leaves 10% free; {_fullest(found)}")
    what = f"no placement on {machines.nodes * machines.gpus} GPUs" if machines.gpus else "no ZeRO stage on these hosts"
    return Suggestion("", f"{what} leaves 10% free with this model and these lengths; what is in the way is said above")


def _uses(config: RunConfig) -> bool:
    return bool(config.ppo.placement.policy.gpus)


def _number(config: RunConfig, role: str) -> int:
    return int(getattr(config.ppo, role).zero)


def _tried(config: RunConfig, plan: RunPlan, assumed: Assumed) -> StagePlan | None:
    """The stage PPO of `config` where it fits with head-room; None where it does not."""
    machines = plan.machines
    try:
        stage = ppo_stage(config, plan.shapes, assumed, machines)
    except ConfigError:
        return None
    loads = place(stage.workers, stage.groups, machines)
    if machines.gpus and loads.needed_gpus > machines.nodes * machines.gpus:
        return None
    fits = all(load.verdict in ("fits", None) for load in loads.all)
    return StagePlan(stage, loads) if fits else None


def _staged(config: RunConfig, name: str) -> RunConfig:
    return _changed(config, {role: _sharding(name) for role in config.ppo.trained_roles})


def _candidates(config: RunConfig, machines: Machines) -> Iterator[tuple[str, RunConfig]]:
    """The run's own placement with other stages; then GPUs of its own for every role; then all roles on all GPUs. That
    DeepSpeed offloads states to the host, over the bus and back at every step, only where none of these fits."""
    total = machines.nodes * machines.gpus
    for names in (STAGES[:-1], STAGES[-1:] if total else ()):
        if _uses(config) == bool(machines.gpus):
            for name in names:
                yield f"the run's own placement with {name}", _staged(config, name)
        for name in names:
            if total and (made := _separate(config, total, name)):
                yield f"every role on GPUs of its own, {name}", made
        for name in names:
            if total:
                yield f"all roles on the same {total} GPUs, {name}", _colocated(config, total, name)


def _separate(config: RunConfig, total: int, name: str) -> RunConfig | None:
    """One GPU each for reference and reward, a quarter for rollout, the rest in equal parts for what is trained."""
    ppo = config.ppo
    frozen = sum(role in ppo.roles for role in ("reference", "reward"))
    engines = max(1, total // 4)
    ranks = (total - frozen - engines) // len(ppo.trained_roles)
    if ranks < 1:
        return None
    roles: dict[str, Any] = {role: {"workers": 1, "gpus": 1.0} for role in ppo.roles}
    roles["rollout"] = {"workers": engines, "gpus": 1.0}
    trained = {role: {"ranks": ranks, **_sharding(name)} for role in ppo.trained_roles}
    return _changed(config, {**trained, "placement": {"mode": "separate", "share": (), **roles}})


def _colocated(config: RunConfig, total: int, name: str) -> RunConfig:
    ppo = config.ppo
    roles = {role: {"workers": total, "gpus": 1.0} for role in ppo.roles}
    trained = {role: {"ranks": total, **_sharding(name)} for role in ppo.trained_roles}
    changes: dict[str, Any] = {
        **trained,
        "placement": {"mode": "colocated", "share": (), **roles},
        "transfer": "object_store",
    }
    return _changed(config, changes)


def _sharding(name: str) -> dict[str, Any]:
    return {"zero": int(name[4]), "ds_config": name if name == OFFLOAD else None}


def _changed(config: RunConfig, ppo: dict[str, Any]) -> RunConfig:
    return config.model_copy(update={"ppo": updated(config.ppo, ppo)})


def _yaml(config: RunConfig) -> str:
    """What to paste: sharding and placement of PPO."""
    ppo, placement = config.ppo, config.ppo.placement
    lines = ["ppo:"]
    for role in ppo.trained_roles:
        one = getattr(ppo, role)
        file = "" if one.ds_config is None else f", ds_config: {one.ds_config}"
        lines.append(f"  {role}: {{ranks: {one.ranks}, zero: {one.zero}{file}}}")
    if placement.mode != "separate":
        lines.append(f"  transfer: {ppo.transfer}")
    lines += ["  placement:", f"    mode: {placement.mode}"]
    if placement.share:
        lines.append(f"    share: [{', '.join('[' + ', '.join(group) + ']' for group in placement.share)}]")
    for role in ppo.roles:
        there = getattr(placement, role)
        lines.append(f"    {role}: {{workers: {ppo.workers_of(role)}, gpus: {there.gpus:g}}}")
    return "\n".join(lines) + "\n"


def _fullest(found: StagePlan) -> str:
    load = max(found.loads.gpus or found.loads.hosts, key=lambda one: one.peak)
    limit = f" of {load.limit / 2**30:.1f}" if load.limit else ""
    return f"its fullest place takes {load.peak / 2**30:.1f}{limit} GiB in phase {load.fullest}"
