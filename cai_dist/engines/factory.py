"""From the section `engine` of the run file to the engine."""

from __future__ import annotations

from cai_dist.config.engine import EngineConfig, missing_backend
from cai_dist.config.training import Dtype
from cai_dist.engines.protocols.rollout import RolloutEngine
from cai_dist.errors import ConfigError


def build_rollout_engine(config: EngineConfig, dtype: Dtype, *, require_sync: bool = False) -> RolloutEngine:
    """The engine of `config.backend`, empty. Raises ConfigError if its package is not installed here."""
    if config.backend == "hf":
        from cai_dist.engines.hf.rollout import HfRolloutEngine

        return HfRolloutEngine(dtype, config, require_sync=require_sync)
    if missing := missing_backend(config):
        raise ConfigError(missing)
    from cai_dist.engines.vllm.rollout import VllmRolloutEngine

    return VllmRolloutEngine(dtype, config, require_sync=require_sync)
