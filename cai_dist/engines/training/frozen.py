"""Engines for models that only score: whole in one process, or sharded with ZeRO-3."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeVar

import torch

from cai_dist.config.training import Dtype, ShardingConfig
from cai_dist.distributed.process_group import init_process_group, worker_device
from cai_dist.engines.protocols.training import Model
from cai_dist.engines.training.offload import Offloader, model_tensors
from cai_dist.models.causal import CausalModel
from cai_dist.models.partition import Partition
from cai_dist.models.scalar import ScalarHeadModel
from cai_dist.types import MemoryPart, RankInfo

B = TypeVar("B")
R = TypeVar("R")


class ScoringEngine(Protocol):
    """`infer` and `keep_on_device` as in `TrainEngine`."""

    device: torch.device

    def infer(self, micro_batches: Sequence[B], fn: Callable[[Model, B], R]) -> list[R]:
        """`fn(model, micro_batch)` for each, without gradients, in order."""
        ...

    def keep_on_device(self, parts: Collection[MemoryPart]) -> dict[MemoryPart, float]:
        """Exactly these parts of the memory are on the device afterwards."""
        ...


class LocalScoringEngine:
    """The whole model in this process; no other rank takes part."""

    def __init__(self, model: CausalModel | ScalarHeadModel) -> None:
        self.device = worker_device()
        self._model = model.to(self.device).eval()
        self._memory = Offloader(self.device, {"weights": lambda: model_tensors(self._model)})

    def infer(self, micro_batches: Sequence[B], fn: Callable[[Model, B], R]) -> list[R]:
        """`fn(model, micro-batch)` without gradients for each micro-batch."""
        self._memory.need("weights")
        with torch.no_grad():
            return [fn(self._model, batch) for batch in micro_batches]

    def keep_on_device(self, parts: Collection[MemoryPart]) -> dict[MemoryPart, float]:
        """Weights on the device or on the host. Returns MiB that could not leave."""
        self._memory.keep_on_device(parts)
        return self._memory.left


def scoring_partition(
    info: RankInfo, sharding: ShardingConfig | None, dtype: Dtype, timeout: float
) -> Partition | None:
    """How the model of a scoring engine is to be cut while it is built; None: it gets a whole one. Joins the process
    group of `info` where it is cut."""
    if sharding is None:
        return None
    from cai_dist.engines.training.partitioning import partition_of

    init_process_group(info, timeout)
    return partition_of(sharding, None, dtype, timeout)


def build_scoring_engine(
    model: CausalModel | ScalarHeadModel, info: RankInfo, sharding: ShardingConfig | None, dtype: Dtype, timeout: float
) -> ScoringEngine:
    """A local engine, or (with `sharding`) one rank of a ZeRO-3 engine without an optimiser, for a model that one
    process cannot hold. DeepSpeed is imported only for the second."""
    if sharding is None:
        return LocalScoringEngine(model)
    from cai_dist.engines.training.deepspeed_engine import DeepSpeedEngine

    init_process_group(info, timeout)
    return DeepSpeedEngine(model, None, sharding, dtype, 1, timeout)
