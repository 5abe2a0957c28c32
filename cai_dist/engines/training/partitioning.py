"""ZeRO-3's `zero.Init`: models whose parameters are cut over the ranks while they are built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from cai_dist.config.ds_config import build_ds_config
from cai_dist.config.training import Dtype, OptimizerConfig, ShardingConfig
from cai_dist.distributed.process_group import worker_device
from cai_dist.engines.training.deepspeed_setup import import_deepspeed
from cai_dist.models.partition import Partition


class ZeroPartition:
    """A `Partition` as DeepSpeed cuts; the process group must be up."""

    def __init__(self, config: dict[str, Any], timeout: float) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self._config, self._deepspeed = config, import_deepspeed(timeout)

    @contextmanager
    def construction(self) -> Iterator[None]:
        """A block in which models are made cut (`Partition`). DeepSpeed says where tensors are made, and not of which
        type: a model in half precision has buffers in full (the frequencies of rotary embeddings), and DeepSpeed would
        make these half, too."""
        zero = self._deepspeed.zero
        overrides = [zero.DeepSpeedTensorOverride.device]
        with (
            _without_broadcasts(self._deepspeed.comm),
            zero.Init(config_dict_or_path=self._config, tensor_overrides=overrides),
        ):
            yield

    def everywhere(self, here: bool) -> bool:
        """Whether it is so on all ranks, by an all-reduce."""
        flag = torch.tensor([int(here)], device=worker_device())
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag.item())


@contextmanager
def _without_broadcasts(comm: Any) -> Iterator[None]:
    """A block in which rank 0 does not send every parameter to the others as soon as it is made: nothing is in it yet.
    Its memory then is never touched, but for the slice that stays."""
    before = comm.broadcast
    comm.broadcast = lambda *args, **kwargs: None
    try:
        yield
    finally:
        comm.broadcast = before


def partition_of(
    sharding: ShardingConfig, optimizer: OptimizerConfig | None, dtype: Dtype, timeout: float
) -> Partition | None:
    """How DeepSpeed's engine wants the parameters of its model under these settings; None where each rank holds the
    whole model (stages below 3), and where partitions live on a disk, which are cut when the engine is made.

    Raises ConfigError as `build_ds_config` does.
    """
    if sharding.zero < 3:
        return None
    config = build_ds_config(sharding, optimizer, dtype)
    offload = config["zero_optimization"].get("offload_param") or {}
    if offload.get("device") == "nvme":
        return None
    return ZeroPartition(config, timeout)
