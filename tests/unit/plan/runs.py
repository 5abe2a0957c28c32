"""A small run for the tests of plans."""

from __future__ import annotations

from typing import Any

from cai_dist.config.loading.load import build_run
from cai_dist.config.run import RunConfig

GIB = 2**30


def run_of(gpus: float = 1.0, **ppo: Any) -> RunConfig:
    """PPO on Llama 3.1 8B in bf16, four ranks each, ZeRO-3, every role with GPUs of its own."""
    placement = ppo.pop("placement", {})
    roles = {role: {"gpus": gpus} for role in ("policy", "value", "reference", "reward", "rollout")}
    roles["rollout"]["workers"] = 2
    settings: dict[str, Any] = {
        "prompts_per_iteration": 64,
        "mini_batch": 32,
        "epochs": 1,
        "policy": {"ranks": 4, "zero": 3, "micro_batch": 1},
        "value": {"ranks": 4, "zero": 3, "micro_batch": 1},
        "sampling": {"max_new_tokens": 128},
        "placement": {**roles, **placement},
    }
    models = dict.fromkeys(("assistant", "pretrained", "feedback"), "meta-llama/Llama-3.1-8B")
    return build_run(
        {
            "name": "planned",
            "models": {**models, "dtype": "bf16", "context": 1024},
            "data": {"red_team": {"source": "world"}},
            "ppo": settings | ppo,
            "cluster": {"gpus": gpus},
        }
    )
