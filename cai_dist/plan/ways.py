"""What would make a full place less full. Every change of a setting that is advised was planned and takes less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cai_dist.config.run import RunConfig
from cai_dist.config.stages import PPO
from cai_dist.config.training import LoraConfig, ShardingConfig
from cai_dist.plan.machines import Load
from cai_dist.plan.roles import PlannedStage

OFFLOAD = "zero3_offload"
Change = tuple[str, RunConfig]
"""In words, and the run with it."""
SECTIONS = {
    "sft": ("sft", "train", "sharding"),
    "pm pretraining": ("preference", "pretraining", "train", "sharding"),
    "preference": ("preference", "train", "sharding"),
    "dpo": ("dpo", "train", "sharding"),
}
"""Where the sharding of a stage stands in the run file; the roles of PPO have their own."""


def way_out(config: RunConfig, stage: PlannedStage, load: Load, phase: str, planned: Callable[[RunConfig], int]) -> str:
    """In words, what to change first at `load` of `stage`, which is too full in `phase`. `planned`: bytes that the
    fullest place of this kind takes in this stage with other settings."""
    roles = {who.partition("[")[0] for who in load.who}
    trained = [path for role, path in _shardings(config, stage.name).items() if role in roles]
    host = load.name.startswith("host")
    if not host and not trained:
        if whole := sorted(role for role in roles & {"reference", "reward"} if not config.ppo.scoring(role)):
            return f"ppo.{whole[0]}.ranks spreads the model over as many GPUs; or larger GPUs, a smaller model"
        return "a frozen model or an engine is whole on one GPU: larger GPUs, a smaller model, fewer rows"
    if not host and phase == "start":
        return "every rank has the whole model: zero: 3 (built in parts), larger GPUs or a smaller model"
    ways = list(_by_place(stage, load))
    ways += [words for words, other in _changes(config, stage, trained) if planned(other) < 0.99 * load.peak]
    return " or ".join([", ".join(ways[:-1]), ways[-1]] if len(ways) > 1 else ways or ["a smaller model"])


def updated(section: Any, changes: dict[str, Any]) -> Any:
    """A copy of a frozen section with nested changes."""
    made = {
        key: updated(getattr(section, key), value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return section.model_copy(update=made)


def _shardings(config: RunConfig, stage: str) -> dict[str, tuple[str, ...]]:
    """Role -> where its sharding stands, of a stage that trains; the one role of another stage has the stage's name."""
    if stage == PPO:
        return {role: ("ppo", role) for role in config.ppo.trained_roles}
    return {stage: SECTIONS[stage]} if stage in SECTIONS else {}


def _by_place(stage: PlannedStage, load: Load) -> Iterator[str]:
    """Fewer workers there."""
    roles = {who.partition("[")[0] for who in load.who}
    if not load.name.startswith("host"):
        if len(roles) > 1:
            yield "fewer roles on it (ppo.placement)"
        return
    yield "more nodes" if len(load.who) > 1 else "a node with more memory"
    if len(roles) < len(load.who):
        yield "fewer workers on one"
    if stage.groups:
        yield "roles on GPUs of their own (ppo.placement.mode)"


def _changes(config: RunConfig, stage: PlannedStage, trained: Sequence[tuple[str, ...]]) -> Iterator[Change]:
    """What a run of this kind has settings for."""

    def each(change: Callable[[ShardingConfig], dict[str, Any]]) -> RunConfig:
        made = config
        for path in trained:
            made = updated(made, nested(path, change(sharding_at(config, path))))
        return made

    sharded = [sharding_at(config, path) for path in trained]
    for zero in (1, 2, 3):
        if any(one.zero < zero for one in sharded):
            yield f"zero: {zero}", each(_at_least(zero))
    if any(one.ranks == 1 and one.zero for one in sharded) and config.models.dtype == "fp32":
        zero_0 = {"zero": 0, "ds_config": None}
        yield "zero: 0 where there is one rank", each(lambda one: zero_0 if one.ranks == 1 else {})
    if any(worker.gpus for worker in stage.workers):
        yield "more ranks", each(lambda one: {"ranks": 2 * one.ranks})
        if any(one.ds_config != OFFLOAD for one in sharded):
            yield OFFLOAD, each(lambda one: {"zero": 3, "ds_config": OFFLOAD})
    yield "fewer tokens a micro-batch", each(_smaller)
    section = SECTIONS[stage.name][0] if stage.name in SECTIONS else stage.name
    if (trained or section == PPO) and getattr(config, section).lora is None:
        yield f"{section}.lora", updated(config, {section: {"lora": LoraConfig()}})
    if not trained:
        rows = max(1, config.engine.max_rows // 8)
        yield "fewer rows (engine.max_rows)", updated(config, {"engine": {"max_rows": rows}})
    yield "a shorter models.context", updated(config, {"models": {"context": config.models.context * 3 // 4}})


def _at_least(zero: int) -> Callable[[ShardingConfig], dict[str, Any]]:
    return lambda one: {"zero": max(one.zero, zero), "ds_config": None}


def _smaller(one: ShardingConfig) -> dict[str, Any]:
    cap = one.max_tokens_per_micro_batch
    return {"max_tokens_per_micro_batch": max(1, cap // 2)} if cap else {"micro_batch": max(1, one.micro_batch // 2)}


def nested(path: Sequence[str], value: dict[str, Any]) -> dict[str, Any]:
    """`value` below the keys of `path`."""
    return {path[0]: nested(path[1:], value)} if path else value


def sharding_at(config: RunConfig, path: Sequence[str]) -> ShardingConfig:
    """The sharding at the keys of `path`."""
    found: Any = config
    for name in path:
        found = getattr(found, name)
    sharding: ShardingConfig = found
    return sharding
