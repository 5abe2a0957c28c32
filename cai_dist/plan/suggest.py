"""The fastest layout of PPO that fits with head-room: ZeRO stage, placement, ranks. Every candidate is planned, checked
and timed as the run itself is."""

from __future__ import annotations

from dataclasses import dataclass

from cai_dist.config.checks.placement import engine_problems
from cai_dist.config.checks.ppo import ppo_problems
from cai_dist.config.demand import ppo_demand
from cai_dist.errors import ConfigError
from cai_dist.plan.build import RunPlan, StagePlan
from cai_dist.plan.layouts import STAGES, Layout, layouts, lines, staged, uses_gpus
from cai_dist.plan.machines import place
from cai_dist.plan.rates import seconds
from cai_dist.plan.roles import Assumed, ppo_stage, tokens_of

FASTER = 0.9
"""Of the run's own seconds: a layout that takes more of them is no faster one, times being what they are."""


@dataclass(frozen=True)
class Suggestion:
    """YAML lines to paste, and one line of why. `lines` are empty where the run can stay as it is, or nothing fits.
    `seconds`: of an iteration with them; None without rates."""

    lines: str
    why: str
    seconds: float | None = None


@dataclass(frozen=True)
class _Tried:
    """A layout that fits with head-room. `seconds`: of an iteration, None without rates."""

    layout: Layout
    stage: StagePlan
    seconds: float | None


def suggest(plan: RunPlan, assumed: Assumed) -> Suggestion | None:
    """A suggestion for the stage PPO; None where the run has none or the memory of its machines is not known."""
    machines, config = plan.machines, plan.config
    known = machines.gpu_memory if machines.gpus else machines.cpu_memory
    if plan.ppo is None or known is None or (uses_gpus(config) and not machines.gpus):
        return None
    own = _tried(Layout("as it is", config), plan, assumed) if uses_gpus(config) == bool(machines.gpus) else None
    if own is not None and own.seconds is None:
        return Suggestion("", f"PPO fits as it is, with 10% of every device free{_lower(plan, assumed)}")
    fitting: list[_Tried] = []
    for offload in (False, True):  # to the host and back at every step: only where nothing else fits
        tried = (_tried(layout, plan, assumed) for layout in layouts(config, machines, offload))
        fitting = fitting or [one for one in tried if one is not None]
    best = min(fitting, key=lambda one: one.seconds or 0.0, default=None)
    if own is not None and own.seconds is not None:
        if best is None or best.seconds is None or best.seconds > FASTER * own.seconds:
            why = f"PPO fits as it is, with 10% of every device free; of {len(fitting)} layouts that do none is faster"
            return Suggestion("", why + _lower(plan, assumed), own.seconds)
        why = f"PPO fits as it is, {own.seconds:.0f} s an iteration, but {_words(best, len(fitting))}"
        return Suggestion(lines(best.layout.config, config), why, best.seconds)
    if best is not None:
        tight = plan.seconds is not None and not any(load.verdict == "does not fit" for load in plan.ppo.loads.all)
        now = f"PPO leaves less than 10% free as it is, {_total(plan):.0f} s an iteration; " if tight else ""
        return Suggestion(lines(best.layout.config, config), now + _words(best, len(fitting)), best.seconds)
    what = f"no placement on {machines.nodes * machines.gpus} GPUs" if machines.gpus else "no ZeRO stage on these hosts"
    return Suggestion("", f"{what} leaves 10% free with this model and these lengths; what is in the way is said above")


def _total(plan: RunPlan) -> float:
    return plan.seconds.total(plan.config.ppo.schedule) if plan.seconds is not None else 0.0


def _words(best: _Tried, count: int) -> str:
    which = "the first that leaves 10% free"
    if best.seconds is not None:
        which = f"{best.seconds:.0f} s an iteration, the fastest of {count} that leave 10% free"
    return f"{best.layout.words}: {which}; {_fullest(best.stage)}"


def _lower(plan: RunPlan, assumed: Assumed) -> str:
    """That a lower stage of ZeRO would do where it stands."""
    config = plan.config
    tried = (name for name in STAGES[:-1] if _tried(Layout(name, staged(config, name)), plan, assumed))
    lower = next(tried, None)
    now = max(int(getattr(config.ppo, role).zero) for role in config.ppo.trained_roles)
    return f"; {lower} would do, with less communication" if lower is not None and int(lower[4]) < now else ""


def _tried(layout: Layout, plan: RunPlan, assumed: Assumed) -> _Tried | None:
    """None where the layout contradicts itself, or does not fit with head-room."""
    machines, config = plan.machines, layout.config
    if any(ppo_problems(config.ppo)) or any(engine_problems(config)):
        return None
    trained = [getattr(config.ppo, role) for role in config.ppo.trained_roles]
    if any(one.ranks % one.sequence_parallel for one in trained):
        return None
    if machines.cpus is not None and ppo_demand(config).cpus > machines.nodes * machines.cpus:
        return None
    try:
        stage = ppo_stage(config, plan.shapes, assumed, machines)
    except ConfigError:
        return None
    if machines.gpu_memory is not None and any(one.gpus and one.peak() > machines.gpu_memory for one in stage.workers):
        return None
    loads = place(stage.workers, stage.groups, machines)
    if machines.gpus and loads.needed_gpus > machines.nodes * machines.gpus:
        return None
    if not all(load.verdict in ("fits", None) for load in loads.all):
        return None
    took = None
    if plan.rates is not None and plan.rates.per == "gpu" and machines.gpus:
        tokens = tokens_of(config, assumed, config.ppo.longest_response)
        took = seconds(config, plan.shapes, tokens, plan.rates, stage.workers).total(config.ppo.schedule)
    return _Tried(layout, StagePlan(stage, loads), took)


def _fullest(found: StagePlan) -> str:
    load = max(found.loads.gpus or found.loads.hosts, key=lambda one: one.peak)
    limit = f" of {load.limit / 2**30:.1f}" if load.limit else ""
    return f"its fullest place takes {load.peak / 2**30:.1f}{limit} GiB in phase {load.fullest}"
