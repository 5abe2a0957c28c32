"""Real workers with DeepSpeed's engine in the test's own process: one rank on the CPU, no Ray."""

from __future__ import annotations

from typing import Any

from cai_dist.config.training import OptimizerConfig, ShardingConfig
from cai_dist.types import RankInfo
from cai_dist.workers.base import TrainedWorker


def build_worker(kind: type[TrainedWorker], model: str, *, zero: int = 0, **kwargs: Any) -> Any:
    """A `kind` on one rank; `kwargs` beside what a test seldom cares about."""
    asked: dict[str, Any] = {
        "dtype": "fp32",
        "optimizer": OptimizerConfig(lr=1e-3),
        "sharding": ShardingConfig(ranks=1, zero=zero),  # type: ignore[arg-type]
        "total_steps": 10,
        "seed": 3,
    }
    return kind(RankInfo("test", 0, 1), model=model, **asked | kwargs)
