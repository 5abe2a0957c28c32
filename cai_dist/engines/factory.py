"""From the section `engine` of the run file to engines."""

from __future__ import annotations

from typing import Protocol

from cai_dist.config.engine import EngineConfig, missing_backend
from cai_dist.config.training import Dtype, OptimizerConfig, ShardingConfig
from cai_dist.engines.protocols.rollout import RolloutEngine
from cai_dist.engines.protocols.training import TrainEngine
from cai_dist.errors import ConfigError
from cai_dist.models.causal import CausalModel
from cai_dist.models.partition import Partition
from cai_dist.models.scalar import ScalarHeadModel
from cai_dist.registry import Registry, Signature


class RolloutBuilder(Protocol):
    """What makes a rollout engine, empty: a class or a function."""

    def __call__(self, dtype: Dtype, config: EngineConfig, *, require_sync: bool) -> RolloutEngine: ...


class TrainBuilder(Protocol):
    """What makes one rank of a training engine around a model: a class or a function. `optimizer` None: it only
    scores; `timeout`: seconds of one collective operation."""

    def __call__(
        self,
        model: CausalModel | ScalarHeadModel,
        optimizer: OptimizerConfig | None,
        sharding: ShardingConfig,
        dtype: Dtype,
        total_steps: int,
        timeout: float,
        dropout: bool,
    ) -> TrainEngine: ...


def _hf() -> RolloutBuilder:
    from cai_dist.engines.hf.rollout import HfRolloutEngine

    return HfRolloutEngine


def _vllm() -> RolloutBuilder:
    if missing := missing_backend(EngineConfig(backend="vllm")):
        raise ConfigError(missing)
    from cai_dist.engines.vllm.rollout import VllmRolloutEngine

    return VllmRolloutEngine


def _deepspeed() -> TrainBuilder:
    from cai_dist.engines.training.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine


ROLLOUT: Registry[RolloutBuilder] = Registry(
    "engine.backend",
    {"hf": _hf, "vllm": _vllm},
    Signature(("dtype", "config"), ("require_sync",), protocol=RolloutEngine),
)
TRAINING: Registry[TrainBuilder] = Registry(
    "engine.training",
    {"deepspeed": _deepspeed},
    Signature(("model", "optimizer", "sharding", "dtype", "total_steps", "timeout", "dropout"), protocol=TrainEngine),
)


def build_rollout_engine(config: EngineConfig, dtype: Dtype, *, require_sync: bool = False) -> RolloutEngine:
    """The engine of `config.backend`, empty. Raises ConfigError if it, or its package, is not there."""
    return ROLLOUT.resolve(config.backend)(dtype, config, require_sync=require_sync)


def partition_for(
    name: str, sharding: ShardingConfig, optimizer: OptimizerConfig, dtype: Dtype, timeout: float
) -> Partition | None:
    """How the model of a rank of this training engine is to be cut while it is built; None: it gets a whole one, as
    every engine of one's own does. Raises ConfigError."""
    if name != "deepspeed":
        return None
    from cai_dist.engines.training.partitioning import partition_of

    return partition_of(sharding, optimizer, dtype, timeout)


def build_train_engine(
    name: str,
    model: CausalModel | ScalarHeadModel,
    optimizer: OptimizerConfig,
    sharding: ShardingConfig,
    dtype: Dtype,
    total_steps: int,
    timeout: float,
    dropout: bool,
) -> TrainEngine:
    """One rank of the engine that `engine.training` names, around `model`. Raises ConfigError if it is not there."""
    return TRAINING.resolve(name)(model, optimizer, sharding, dtype, total_steps, timeout, dropout)
