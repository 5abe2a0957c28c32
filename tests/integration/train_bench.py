"""Building trained workers on 1 or 2 ranks and running steps on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cai_dist.cluster.group import WorkerGroup
from cai_dist.config.run import TimeoutsConfig
from cai_dist.config.training import OptimizerConfig, ShardingConfig
from cai_dist.data.schedule import plan_items
from cai_dist.types import StepShard

OPTIMIZER = OptimizerConfig(lr=3e-3, schedule="cosine", warmup_steps=3, final_lr_fraction=0.1, weight_decay=0.01)
TOTAL_STEPS = 10


@dataclass
class TrainBench:
    groups: dict[int, WorkerGroup]

    def make(
        self, kind: str, model: str, *, ranks: int, zero: int, micro_batch: int, dtype: str = "fp32", **extra: Any
    ) -> WorkerGroup:
        """A fresh `kind` worker ("language:LanguageWorker") on `ranks` processes; drive it through `use`."""
        kwargs = {
            "model": model,
            "dtype": dtype,
            "optimizer": OPTIMIZER,
            "sharding": ShardingConfig(ranks=ranks, zero=zero, micro_batch=micro_batch),
            "total_steps": TOTAL_STEPS,
            "seed": 3,
            "timeouts": TimeoutsConfig(collective=60.0),
        }
        group = self.groups[ranks]
        target = kind if kind.startswith("tests.") else f"cai_dist.workers.{kind}"
        group.broadcast("make", "make", target, kwargs | extra)
        return group


def run_steps(
    group: WorkerGroup,
    batches: Sequence[Sequence[Any]],
    micro_batch: int,
    denominator: Callable[[Sequence[Any]], float],
    max_tokens: int | None = None,
) -> list[dict[str, float]]:
    """One optimiser step for each batch; the metrics, which are the same on every rank."""
    limits = ShardingConfig(micro_batch=micro_batch, max_tokens_per_micro_batch=max_tokens)
    per_rank: list[list[StepShard[Any]]] = [[] for _ in range(len(group))]
    for batch in batches:
        for rank, micro in enumerate(plan_items(batch, len(group), limits, "packed").split(batch)):
            per_rank[rank].append(StepShard(micro, denominator(batch)))
    results = group.broadcast("steps", "my_steps", per_rank)
    assert all(result == results[0] for result in results)
    return results[0]


def use(group: WorkerGroup, method: str, *args: Any) -> list[Any]:
    """A method of the worker on the bench, on every rank."""
    return group.broadcast(method, "use", method, *args)


def split(group: WorkerGroup, method: str, items: Sequence[Any], micro_batch: int, *args: Any) -> list[Any]:
    """A scoring method of the worker on the bench, the items split over the ranks; one result per item."""
    plan = plan_items(items, len(group), ShardingConfig(micro_batch=micro_batch), "packed")
    shards = [StepShard(micro) for micro in plan.split(items)]
    return plan.restore(group.broadcast(method, "mine", method, shards, *args))
