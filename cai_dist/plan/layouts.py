"""Layouts of PPO on given machines: which roles share GPUs, how many each has, at which stage of ZeRO."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cai_dist.config.run import RunConfig
from cai_dist.plan.machines import Machines
from cai_dist.plan.ways import OFFLOAD, updated

STAGES = ("zero1", "zero2", "zero3", OFFLOAD)
"""From the least communication to the least memory, by the names of the packaged DeepSpeed files."""
SECOND = ("value", "reward", "reference")
"""Of a hybrid placement the roles that work while policy and rollout share the other GPUs."""


@dataclass(frozen=True)
class Layout:
    """In words, and the run with it."""

    words: str
    config: RunConfig


def layouts(config: RunConfig, machines: Machines, offload: bool) -> Iterator[Layout]:
    """The run's own placement with other stages; GPUs of its own for every role; all roles on all GPUs; two groups that
    share. Each with every stage, from the least communication on; `offload`: with DeepSpeed's offload alone."""
    total = machines.nodes * machines.gpus
    if offload and not total:
        return
    names = STAGES[-1:] if offload else STAGES[:-1]
    if uses_gpus(config) == bool(machines.gpus):
        for name in names:
            yield Layout(f"the run's own placement with {name}", staged(config, name))
    for name in names if total else ():
        yield from _separate(config, machines, name)
        yield _shared(config, machines, name, total, {}, f"all roles on the same {total} GPUs, {name}")
        for part in sorted({total // 4, total // 2, total * 5 // 8, total * 3 // 4} - {0, total}):
            groups = {role: total - part for role in SECOND if role in config.ppo.roles}
            words = f"policy and rollout on {part} GPUs, {', '.join(groups)} on {total - part}, {name}"
            if len(groups) > 1:
                yield _shared(config, machines, name, part, groups, words)


def uses_gpus(config: RunConfig) -> bool:
    """Whether PPO asks for GPUs."""
    return bool(config.ppo.placement.policy.gpus)


def staged(config: RunConfig, name: str) -> RunConfig:
    """The run with one stage of ZeRO for all that it trains."""
    return _changed(config, {role: _sharding(name) for role in config.ppo.trained_roles})


def _separate(config: RunConfig, machines: Machines, name: str) -> Iterator[Layout]:
    """Engines and frozen models have some of the GPUs each, what is trained the rest in equal parts."""
    ppo, total = config.ppo, machines.nodes * machines.gpus
    frozen = [role for role in ("reference", "reward") if role in ppo.roles]
    for engines in sorted({max(1, total * part // 8) for part in (1, 2, 3, 4)}):
        for count in [0.5, *sorted({max(1, total * part // 16) for part in (1, 2, 4)})]:
            left = total - engines - (int(count * len(frozen) + 0.5))
            ranks = left // len(ppo.trained_roles)
            if ranks < 1 or engines % config.engine.processes:
                continue
            roles: dict[str, Any] = {role: {"workers": None, "gpus": 1.0} for role in ppo.trained_roles}
            roles |= {role: {"workers": max(1, int(count)), "gpus": min(1.0, count)} for role in frozen}
            roles["rollout"] = {"workers": engines // config.engine.processes, "gpus": 1.0}
            trained = {role: {"ranks": ranks, **_sharding(name)} for role in ppo.trained_roles}
            trained |= _sharded(config, roles, {role: max(1, int(count)) for role in frozen})
            placement = {"mode": "separate", "share": (), **_cpus(config, machines, roles, ranks)}
            transfer = {"transfer": "object_store"} if ppo.transfer == "cuda_ipc" else {}
            words = f"every role on GPUs of its own, {ranks} a trained one, {engines} for rollout, {name}"
            yield Layout(words, _changed(config, {**trained, **transfer, "placement": placement}))


def _shared(config: RunConfig, machines: Machines, name: str, ranks: int, second: dict[str, int], words: str) -> Layout:
    """Roles that share GPUs: those of `second` with so many, all others with `ranks`."""
    ppo = config.ppo
    others = tuple(role for role in ppo.roles if role not in second)
    roles = {role: {"workers": None, "gpus": 1.0} for role in ppo.roles}
    for group in (others, tuple(second)):  # a group without a trained role has nobody to follow
        if not any(role in ppo.trained_roles for role in group):
            roles |= {role: {"workers": second[role], "gpus": 1.0} for role in group}
    trained = {role: {"ranks": second.get(role, ranks), **_sharding(name)} for role in ppo.trained_roles}
    trained |= _sharded(config, roles, {role: second.get(role, ranks) for role in ppo.roles})
    mode = {"mode": "hybrid", "share": (others, tuple(second))} if second else {"mode": "colocated", "share": ()}
    placement = mode | _cpus(config, machines, roles, ranks)
    return Layout(words, _changed(config, {**trained, "placement": placement, "transfer": "object_store"}))


def _sharded(config: RunConfig, roles: dict[str, Any], counts: dict[str, int]) -> dict[str, Any]:
    """Ranks of the models that only score and that the run spreads over processes; `roles` then say no number."""
    found = {role: {"ranks": count} for role, count in counts.items() if config.ppo.scoring(role)}
    for role in found:
        roles[role] = roles[role] | {"workers": None}
    return found


def _cpus(config: RunConfig, machines: Machines, roles: dict[str, Any], ranks: int) -> dict[str, Any]:
    """`roles` with fewer CPUs each where all of them would ask for more than there are."""
    if machines.cpus is None:
        return roles
    place = config.ppo.placement
    counts = {role: one["workers"] or ranks for role, one in roles.items()}
    counts["rollout"] *= config.engine.processes
    asked = sum(count * getattr(place, role).cpus for role, count in counts.items())
    share = machines.nodes * machines.cpus / asked
    if share >= 1:
        return roles
    return {role: one | {"cpus": int(100 * share * getattr(place, role).cpus) / 100} for role, one in roles.items()}


def _sharding(name: str) -> dict[str, Any]:
    return {"zero": int(name[4]), "ds_config": name if name == OFFLOAD else None}


def _changed(config: RunConfig, ppo: dict[str, Any]) -> RunConfig:
    return config.model_copy(update={"ppo": updated(config.ppo, ppo)})


def lines(config: RunConfig, before: RunConfig) -> str:
    """What to paste into the run file of `before`: sharding and placement of PPO."""
    ppo, placement, old = config.ppo, config.ppo.placement, before.ppo.placement
    found = ["ppo:"]
    for role in ppo.trained_roles:
        one, was = getattr(ppo, role), getattr(before.ppo, role)
        file = f", ds_config: {one.ds_config or 'null'}" if one.ds_config != was.ds_config else ""
        found.append(f"  {role}: {{ranks: {one.ranks}, zero: {one.zero}{file}}}")
    for role in (role for role in ppo.roles if ppo.scoring(role)):
        found.append(f"  {role}: {{ranks: {ppo.workers_of(role)}}}")
    if placement.mode != "separate" or ppo.transfer != before.ppo.transfer:
        found.append(f"  transfer: {ppo.transfer}")
    found += ["  placement:", f"    mode: {placement.mode}"]
    if placement.share or old.share:
        found.append(f"    share: [{', '.join('[' + ', '.join(group) + ']' for group in placement.share)}]")
    for role in ppo.roles:
        there, was = getattr(placement, role), getattr(old, role)
        workers = "" if there.workers == was.workers is None else f"workers: {there.workers or 'null'}, "
        cpus = f", cpus: {there.cpus:g}" if there.cpus != was.cpus else ""
        found.append(f"    {role}: {{{workers}gpus: {there.gpus:g}{cpus}}}")
    return "\n".join(found) + "\n"
