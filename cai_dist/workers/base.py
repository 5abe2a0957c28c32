"""What all workers share: one role in one process, a plain class `Class(rank_info, **kwargs)` that knows no ray."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from cai_dist.config.run import TimeoutsConfig
from cai_dist.config.training import (
    Dtype,
    ExportConfig,
    HeadDtype,
    Layout,
    LoraConfig,
    OptimizerConfig,
    ShardingConfig,
)
from cai_dist.distributed.process_group import init_process_group, prepare_device
from cai_dist.distributed.sequence_group import NeighbourGroup
from cai_dist.engines.factory import build_train_engine, partition_for
from cai_dist.engines.protocols.training import TrainEngine
from cai_dist.models.causal import CausalModel
from cai_dist.models.checkpointing import use_checkpointing
from cai_dist.models.load import copy_tokenizer
from cai_dist.models.lora import add_lora
from cai_dist.models.partition import Partition
from cai_dist.models.quantized import quantize_trunk
from cai_dist.models.scalar import ScalarHeadModel
from cai_dist.models.sequence_parallel import spread
from cai_dist.types import MemoryPart, RankInfo
from cai_dist.workers.memory import take_reading


class Worker:
    """A rank with its CPU threads and seeds set."""

    def __init__(self, info: RankInfo, *, threads: int = 1, seed: int = 0) -> None:
        self.info = info
        torch.set_num_threads(threads)
        prepare_device()
        random.seed(seed + info.rank)
        torch.manual_seed(seed + info.rank)

    @property
    def weight_version(self) -> int:
        """Version of the transferred weights that it holds; -1 where none arrive by transfer."""
        return -1

    def status(self) -> dict[str, Any]:
        """Role, rank and version of the weights that the worker holds."""
        return {"role": self.info.role, "rank": self.info.rank, "weight_version": self.weight_version}

    def keep_on_device(self, parts: Collection[MemoryPart]) -> dict[MemoryPart, float]:
        """Exactly these parts of its memory stay on (or come back to) the device. Returns MiB of each part that could
        not leave; a worker that holds nothing has nothing to do."""
        return {}

    def memory(self) -> dict[str, float]:
        """MiB of this process now and at most since the last call (`cai_dist.workers.memory`)."""
        return take_reading()


class TrainedWorker(Worker, ABC):
    """A worker with a training engine (`training`: as `engine.training`); subclasses say which model and which loss.
    With `lora` it trains adapters (and a scalar head) instead of all weights. `dropout`: with the model's own dropout
    in training passes.

    All its methods but `keep_on_device` and those of `Worker` are collective over the ranks of the group.
    """

    engine: TrainEngine

    def __init__(
        self,
        info: RankInfo,
        *,
        model: str,
        dtype: Dtype,
        optimizer: OptimizerConfig,
        sharding: ShardingConfig,
        total_steps: int,
        layout: Layout = "packed",
        head_dtype: HeadDtype = "model",
        lora: LoraConfig | None = None,
        dropout: bool = False,
        export: ExportConfig | None = None,
        training: str = "deepspeed",
        seed: int = 0,
        timeouts: TimeoutsConfig | None = None,
        threads: int = 1,
    ) -> None:
        super().__init__(info, threads=threads, seed=seed)
        timeout = (timeouts or TimeoutsConfig()).collective
        init_process_group(info, timeout)
        self.source, self._export = model, export
        partition = partition_for(training, sharding, optimizer, dtype, timeout)
        built = self.build(model, dtype, seed, layout, partition)
        if head_dtype == "fp32":
            built.use_full_head()
        if lora is not None:
            quantize_trunk(built, lora.quantization)
            add_lora(built, lora, seed)
        if sharding.sequence_parallel > 1:
            spread(built, NeighbourGroup(sharding.sequence_parallel, timeout))
        use_checkpointing(built.hf, sharding, torch.cuda.is_available())
        self._adapter_only = lora is not None and lora.save == "adapter"
        self.engine = build_train_engine(training, built, optimizer, sharding, dtype, total_steps, timeout, dropout)

    @abstractmethod
    def build(
        self, source: str, dtype: Dtype, seed: int, layout: Layout, partition: Partition | None
    ) -> CausalModel | ScalarHeadModel:
        """The model to train; the same on every rank, or this rank's part of it."""

    def keep_on_device(self, parts: Collection[MemoryPart]) -> dict[MemoryPart, float]:
        """Keep these parts on the device, as in `Worker`; what a call needs comes back by itself. Not collective."""
        return self.engine.keep_on_device(parts)

    def save(self, folder: str) -> None:
        """Write this rank's part of a checkpoint into `folder`."""
        self.engine.save(Path(folder))

    def load(self, folder: str) -> int:
        """Go on from a checkpoint; returns the number of steps that the job has left out so far. Raises
        CheckpointError."""
        self.engine.load(Path(folder))
        return self.engine.skipped

    def export(self, folder: str) -> None:
        """Write the model in the Hugging Face layout, or the adapter alone in PEFT's (`lora.save`), with the tokenizer
        of the model that it started from."""
        if self._adapter_only:
            self.engine.export_adapter(Path(folder), self.source)
        else:
            self.engine.export(Path(folder), self._export)
        if self.info.rank == 0:
            copy_tokenizer(self.source, Path(folder))

    def status(self) -> dict[str, Any]:
        """Status as in `Worker`, with the number of optimiser steps taken and of those left out."""
        return super().status() | {"steps": self.engine.steps, "skipped": self.engine.skipped}
