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
from cai_dist.config.training import LoraConfig, ShardingConfig, TrainConfig
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
    item, ppo, shape = ITEM[config.models.dtype], config.ppo, shapes["pretrained"]
    yield "sft model", item * _saved(shape, config.sft.lora, causal=True)
    if PREFERENCE in config.stages:
        count = 2 if config.preference.halves else 1
        yield "preference model", count * item * _saved(shape, config.preference.lora, causal=False)
    if DPO in config.stages:
        yield "dpo model", item * _saved(shape, config.dpo.lora, causal=True)
    if PPO in config.stages:
        yield "ppo model", (one := item * _saved(shapes["policy"], ppo.lora, causal=True))
        if kept := sum(map(ppo.snapshot_due, range(1, ppo.iterations))):
            yield f"ppo snapshots ({kept})", kept * one


def _saved(shape: Shape, lora: LoraConfig | None, causal: bool) -> int:
    """Elements of the model that a job leaves, or of its adapter."""
    elements = trained_elements(shape, None if lora is None or lora.save == "merged" else lora, causal)
    return elements.trained


def _checkpoints(config: RunConfig, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, int]]:
    item, shape = ITEM[config.models.dtype], shapes["pretrained"]

    def job(train: TrainConfig, lora: LoraConfig | None, causal: bool, with_head: bool = False) -> int:
        elements = trained_elements(shape, lora, causal, with_head)
        return checkpoint_bytes(elements, train.sharding, item, lora is not None)

    yield SFT, job(config.sft.train, config.sft.lora, causal=True)
    if PREFERENCE in config.stages:
        lora = config.preference.lora
        yield PREFERENCE, job(config.preference.train, lora, causal=False)
        if config.data.ranked_answers.source != "none":
            first = config.preference.pretraining
            yield f"{PREFERENCE} pretraining", job(first.train, lora, False, with_head=first.language_weight > 0)
    if DPO in config.stages:
        yield DPO, job(config.dpo.train, config.dpo.lora, causal=True)
    if PPO in config.stages:
        ppo, total = config.ppo, 0
        for role in ppo.trained_roles:
            elements = trained_elements(shapes[role], ppo.lora, causal=role == "policy")
            total += checkpoint_bytes(elements, getattr(ppo, role), item, ppo.lora is not None)
        yield PPO, total
