"""What ranks that compute sequences together need: of the run's settings, and of a model's heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cai_dist.config.run import RunConfig
from cai_dist.config.training import ShardingConfig


def sequence_problems(config: RunConfig, shardings: Iterable[tuple[str, ShardingConfig]]) -> Iterator[str]:
    """One line for each contradiction, with the way out; `shardings`: key -> section, of all that is trained."""
    for key, sharding in shardings:
        size = sharding.sequence_parallel
        if size == 1:
            continue
        here = f"{key}.sequence_parallel={size}"
        if config.models.layout != "packed":
            yield f"{here}: needs models.layout=packed; set that, or sequence_parallel to 1"
        if config.engine.training != "deepspeed":
            yield f"{here}: needs engine.training=deepspeed, not {config.engine.training}; set one of them"
        heads = config.world.heads
        if "world" in (key.partition(".")[0], config.models.pretrained) and (why := heads_problem(heads, heads, size)):
            yield f"{here}: the micro-world's model has {why}; set world.heads or another number"


def heads_problem(heads: int, kv_heads: int, size: int) -> str | None:
    """Why a model with so many query and key-value heads cannot be spread over `size` ranks; None where it can. Where
    there are fewer key-value heads than ranks, several ranks have the same one."""
    if heads % size:
        return f"{heads} attention heads, not divisible by {size}"
    if kv_heads % size and size % kv_heads:
        return f"{kv_heads} key-value heads, neither divisible by {size} nor a divisor of it"
    return None
