"""Whether the workers of PPO fit; where they are and what memory they take, for a person and in `placement.json`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from cai_dist.config.ppo import PpoConfig
from cai_dist.stages.context import RunContext
from cai_dist.tracking.atomic import write_json

if TYPE_CHECKING:
    from cai_dist.cluster.ppo.groups import PpoGroups


def on_gpus(ppo: PpoConfig) -> bool:
    """Whether any role of PPO asks for GPUs. (For CPUs alone `cai-dist check` has compared all that there is.)"""
    return any(getattr(ppo.placement, role).gpus for role in ppo.roles)


def check_placement(ctx: RunContext) -> None:
    """Start the cluster and raise ConfigError, one line, if it could never hold the roles of PPO together."""
    from cai_dist.cluster.placement import refuse_too_much
    from cai_dist.cluster.ppo.specs import role_spec

    ppo, engine = ctx.config.ppo, ctx.config.engine
    ctx.cluster()
    refuse_too_much([role_spec(role, ppo, engine, {}) for role in ppo.roles])


@contextmanager
def shown_placement(ctx: RunContext, roles: PpoGroups) -> Iterator[None]:
    """Role x node x GPU before the block runs; after it, without an error, the peaks role x phase (MiB, of the largest
    worker) and what could not leave a shared GPU. Both are in `placement.json`, too."""
    from cai_dist.cluster.placement import seat_rows
    from cai_dist.cluster.ppo.memory_log import peak_rows

    place = ctx.config.ppo.placement
    content = {
        "mode": place.mode,
        "shared": [list(group) for group in ctx.config.ppo.shared_groups],
        "workers": [asdict(seat) for seat in roles.seats],
    }
    write_json(ctx.paths.placement, content)
    columns = ["role", "rank", "node", "GPU", "CPUs", "shares with"]
    ctx.console.table(f"placement of PPO: {place.mode}", columns, seat_rows(roles.seats))
    yield
    roles.memory()
    write_json(ctx.paths.placement, content | {"peak_mb": roles.memory_peaks, "notes": roles.notes})
    ctx.console.table("peak memory of a worker, MiB", *peak_rows(roles.memory_peaks))
    for note in roles.notes:
        ctx.console.say(note)
