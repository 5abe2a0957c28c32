"""What a run writes to its folder at most: models that stay, and the checkpoints of the stage that is training.

A checkpoint has, as DeepSpeed 0.19 writes it, for T trained of P elements in b bytes each: weights (b P; with LoRA b T;
under ZeRO-3 they are no part of it), masters (4 T; at stage 0 in fp32 the weights are the masters) and moments (8 T).
Two of a job are kept; a third is there while it is written. They go when their stage is finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cai_dist.config.run import RunConfig
from cai_dist.config.stages import DPO, PPO, PREFERENCE, SFT
from cai_dist.config.training import ShardingConfig
from cai_dist.plan.roles import trained_elements
from cai_dist.plan.shapes import Shape
from cai_dist.plan.zero import ITEM, ParameterCounts

CHECKPOINTS = 3
"""Of a job at the same time, as `tracking.checkpoints` keeps them."""


@dataclass(frozen=True)
class Disk:
    """Bytes at most. `models`: what stays, by name; `checkpoints`: of one checkpoint, by stage; `peak`: the most that
    is there at the same time, in the stage `fullest`."""

    models: Mapping[str, int]
    checkpoints: Mapping[str, int]
    peak: int
    fullest: str


def disk_of(config: RunConfig, shapes: Mapping[str, Shape]) -> Disk:
    """The disk that all stages of a run take; text and figures, megabytes, are not counted."""
    models, checkpoints = dict(_models(config, shapes)), dict(_checkpoints(config, shapes))
    there, peak, fullest = 0, 0, ""
    for stage in (SFT, PREFERENCE, DPO, PPO):
        if stage not in config.stages:
            continue
        there += sum(size for name, size in models.items() if name.split()[0] == stage)
        now = there + CHECKPOINTS * max(size for name, size in checkpoints.items() if name.split()[0] == stage)
        peak, fullest = max((peak, fullest), (now, stage))
    return Disk(models, checkpoints, peak, fullest)


def checkpoint_bytes(elements: ParameterCounts, sharding: ShardingConfig, item: int, lora: bool = False) -> int:
    """Bytes of one checkpoint, all ranks together."""
    weights = item * (elements.trained if lora else elements.total)
    masters = 0 if sharding.zero == 0 and item == 4 else 4 * elements.trained
    return (0 if sharding.zero == 3 else weights) + masters + 8 * elements.trained


def _models(config: RunConfig, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, int]]:
    item, ppo = ITEM[config.models.dtype], config.ppo
    yield "sft model", item * shapes["pretrained"].parameters
    if PREFERENCE in config.stages:
        count = 2 if config.preference.halves else 1
        yield "preference model", count * item * shapes["pretrained"].scalar_parameters
    if DPO in config.stages:
        yield "dpo model", item * shapes["pretrained"].parameters
    if PPO in config.stages:
        policy = shapes["policy"]
        adapter = ppo.lora is not None and ppo.lora.save == "adapter"
        one = item * (trained_elements(policy, ppo.lora, causal=True).trained if adapter else policy.parameters)
        yield "ppo model", one
        if kept := sum(map(ppo.snapshot_due, range(1, ppo.iterations))):
            yield f"ppo snapshots ({kept})", kept * one


def _checkpoints(config: RunConfig, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, int]]:
    item, shape = ITEM[config.models.dtype], shapes["pretrained"]
    causal = trained_elements(shape, None, causal=True)
    yield SFT, checkpoint_bytes(causal, config.sft.train.sharding, item)
    if PREFERENCE in config.stages:
        scalar = trained_elements(shape, None, causal=False)
        yield PREFERENCE, checkpoint_bytes(scalar, config.preference.train.sharding, item)
        if config.data.ranked_answers.source != "none":
            pretraining = config.preference.pretraining
            both = trained_elements(shape, None, causal=False, with_head=pretraining.language_weight > 0)
            yield f"{PREFERENCE} pretraining", checkpoint_bytes(both, pretraining.train.sharding, item)
    if DPO in config.stages:
        yield DPO, checkpoint_bytes(causal, config.dpo.train.sharding, item)
    if PPO in config.stages:
        ppo, total = config.ppo, 0
        for role in ppo.trained_roles:
            elements = trained_elements(shapes[role], ppo.lora, causal=role == "policy")
            total += checkpoint_bytes(elements, getattr(ppo, role), item, ppo.lora is not None)
        yield PPO, total
