"""From the name of a rollout engine in the run file to the engine."""

from __future__ import annotations

from cai_dist.config.training import Dtype
from cai_dist.engines.rollout import RolloutEngine
from cai_dist.errors import ConfigError


def build_rollout_engine(name: str, dtype: Dtype, *, require_sync: bool = False) -> RolloutEngine:
    """The engine called `name`, empty. Raises ConfigError for a name that this version does not serve."""
    if name == "hf":
        from cai_dist.engines.hf_rollout import HfRolloutEngine

        return HfRolloutEngine(dtype, require_sync=require_sync)
    if name == "vllm":
        raise ConfigError(
            "ppo.engine=vllm: the vLLM engine needs the extra cai_dist[vllm] and is not part of this version; "
            "set ppo.engine=hf"
        )
    raise ConfigError(f"unknown rollout engine {name!r}; allowed: hf, vllm")
