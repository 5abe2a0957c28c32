"""What one rank of a trained model holds under DeepSpeed's ZeRO, in bytes, as DeepSpeed 0.19 does it.

Read from its source: `DeepSpeedZeroOptimizer` (stage 1 in fp32, stage 2), `BF16_Optimizer` (stage 1 in bf16),
`DeepSpeedZeroOptimizer_Stage3`, for stage 0 `FP16_UnfusedOptimizer` and plain AdamW. Gradients are summed in fp32
whatever the model's type. With n ranks and P elements, of them T trained:

    stage   weights   masters   moments   gradients kept     copies in the optimiser step
    0 fp32  4 P       -         8 T       4 T                -
    0 bf16  2 P       4 T       8 T       4 T                -
    1 fp32  4 P       4 T / n   8 T / n   4 T + 4 T / n      4 T / n (one flat tensor)
    1 bf16  2 P       4 T / n   8 T / n   4 T always, 2 T    -
    2 fp32  4 P       4 T / n   8 T / n   4 T / n            4 T / n
    2 bf16  2 P       4 T / n   8 T / n   4 T / n            -
    3       b P / n   4 T / n   8 T / n   4 T / n always     4 min(T / n, sub_group_size and a tensor's part)

Stage 2 keeps the partition twice in fp32 where a step has several micro-batches. In fp32 stages 1 to 3 have masters of
their own, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cai_dist.config.ds_config import build_ds_config
from cai_dist.config.training import Dtype, OptimizerConfig, ShardingConfig

ITEM: Mapping[Dtype, int] = {"fp32": 4, "bf16": 2}
"""Bytes of an element."""


@dataclass(frozen=True)
class Zero:
    """The settings of one sharded model that decide its memory; buckets are in elements."""

    stage: int
    ranks: int
    item: int
    reduce_bucket: int = 50_000_000
    prefetch_bucket: int = 50_000_000
    max_live: int = 1_000_000_000
    sub_group: int = 1_000_000_000
    overlap: bool = False
    offload_optimizer: bool = False
    offload_weights: bool = False


@dataclass(frozen=True)
class ParameterCounts:
    """Elements of one model: all, those that are trained, and those of the largest tensor that has a gradient; of a
    quantised base those that are quantised, the bytes that these take, and those of the largest one."""

    total: int
    trained: int
    largest: int
    quantized: int = 0
    quantized_bytes: int = 0
    unpacked: int = 0

    def nbytes(self, item: int) -> int:
        """Bytes of the weights, where an element of what is not quantised has `item`."""
        return item * (self.total - self.quantized) + self.quantized_bytes


@dataclass(frozen=True)
class States:
    """Bytes of one rank on its device; `host_*`: what ZeRO-Offload keeps on the host instead."""

    weights: int
    optimizer: int
    """Masters and moments."""
    gradients: int
    """Kept until the step."""
    buckets: int
    """Of gradients on their way to other ranks, and the copy that the reduction makes of one."""
    gathered: int
    """Stage 3: weights that are whole during a pass, at most, and the flat buffer that they are cut from."""
    step: int
    """Copies of gradients that only the optimiser step makes."""
    always: int = 0
    """Of `gradients`, what is there in every phase."""
    host_weights: int = 0
    host_optimizer: int = 0


def read_zero(sharding: ShardingConfig, dtype: Dtype, optimizer: OptimizerConfig | None) -> Zero:
    """ZeRO as in the DeepSpeed file that the run would use; without an optimiser, of a model that only scores. Raises
    ConfigError as the run would."""
    found: Mapping[str, Any] = build_ds_config(sharding, optimizer, dtype)["zero_optimization"]
    stage = int(found.get("stage", 0))
    return Zero(
        stage=stage,
        ranks=sharding.ranks,
        item=ITEM[dtype],
        reduce_bucket=int(found.get("reduce_bucket_size", 500_000_000)),
        prefetch_bucket=int(found.get("stage3_prefetch_bucket_size", 50_000_000)),
        max_live=int(found.get("stage3_max_live_parameters", 1_000_000_000)),
        sub_group=int(found.get("sub_group_size", 1_000_000_000)),
        overlap=bool(found.get("overlap_comm") or False),
        offload_optimizer=_offloads(found, "offload_optimizer"),
        offload_weights=stage == 3 and _offloads(found, "offload_param"),
    )


def _offloads(found: Mapping[str, Any], key: str) -> bool:
    part = found.get(key)
    return isinstance(part, Mapping) and part.get("device", "none") != "none"


def share(elements: int, ranks: int) -> int:
    """The largest of `ranks` equal parts."""
    return -(-elements // ranks)


def states(model: ParameterCounts, zero: Zero, passes: int, on_gpu: bool) -> States:
    """Bytes of one rank that trains in steps of `passes` micro-batches. On a CPU only what is written to counts: a
    bucket that gradients do not fill takes less there."""
    b, trained = zero.item, model.trained
    part = share(trained, zero.ranks) if zero.stage else trained
    weights = b * share(model.total, zero.ranks) if zero.stage == 3 else model.nbytes(b)
    optimizer = 8 * part + (0 if zero.stage == 0 and b == 4 else 4 * part)
    gradients, always = _gradients(zero, trained, part, passes)
    step = 0 if zero.stage == 0 or (b == 2 and zero.stage < 3) else 4 * part
    if zero.stage == 3:
        # Flattened one sub-group at a time: tensors are added to it until it has so many elements of this rank.
        step = 4 * min(part, zero.sub_group + share(model.largest, zero.ranks))
    host_weights = host_optimizer = 0
    if zero.offload_optimizer and zero.stage:
        # Beside masters and moments the fp32 gradients, and a buffer of the partition: in stage 3 what they are summed
        # in, else weights in the model's type.
        host_optimizer = optimizer + (4 + (4 if zero.stage == 3 else b)) * part
        optimizer = step = always = 0
        summed = {1: trained, 2: part if b == 2 else 0, 3: 0}[zero.stage]
        gradients = 4 * summed + (0 if zero.stage == 1 else b * model.largest)
    if zero.offload_weights:
        host_weights, weights = weights, 0
    buckets = _buckets(zero, trained, on_gpu)
    whole = gathered(model.total, zero)
    return States(weights, optimizer, gradients, buckets, whole, step, always, host_weights, host_optimizer)


def gathered(elements: int, zero: Zero) -> int:
    """Bytes of the weights that are whole during a pass of stage 3, at most, and of the buffer that they come in."""
    if zero.stage < 3 or (zero.ranks == 1 and not zero.offload_weights):
        return 0
    return zero.item * (min(elements, zero.max_live) + min(elements, zero.prefetch_bucket))


def _gradients(zero: Zero, trained: int, part: int, passes: int) -> tuple[int, int]:
    """(kept until the step, of them there in every phase)."""
    half = zero.item == 2
    if zero.stage == 0:
        return 4 * trained, 0
    if zero.stage == 1:
        return (6 * trained, 4 * trained) if half else (4 * (trained + part), 0)
    if zero.stage == 2:
        return 4 * part * (2 if passes > 1 and not half else 1), 0
    return 4 * part, 4 * part


def _buckets(zero: Zero, trained: int, on_gpu: bool) -> int:
    """A bucket, two where communication overlaps, and a copy of it; gloo makes one more where it reduces and
    scatters."""
    one = zero.item * (min(zero.reduce_bucket, trained) if not on_gpu else zero.reduce_bucket)
    if zero.stage == 0 or (zero.stage == 1 and zero.item == 2 and not zero.offload_optimizer):
        # The sum of the step goes from rank to rank in fp32; stage 1 does not ask the file in how large pieces.
        piece = min(zero.reduce_bucket if zero.stage == 0 else 500_000_000, trained)
        return 4 * piece if zero.ranks > 1 or (zero.stage == 0 and zero.item == 2) else 0
    return one * (2 + int(zero.overlap) + int(zero.stage == 3 and not on_gpu and zero.ranks > 1))
