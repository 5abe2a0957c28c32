"""Building trained workers on 1 or 2 ranks and running steps on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import cai_dist
from cai_dist.cluster.group import WorkerGroup
from cai_dist.config.run import TimeoutsConfig
from cai_dist.config.training import OptimizerConfig, ShardingConfig
from cai_dist.data.schedule import plan_items
from cai_dist.engines.training.learning_rate import learning_rate
from cai_dist.types import StepShard

OPTIMIZER = OptimizerConfig(lr=3e-3, schedule="cosine", warmup_steps=3, final_lr_fraction=0.1, weight_decay=0.01)
TOTAL_STEPS = 10


@dataclass
class TrainBench:
    groups: dict[int, WorkerGroup]
    folder: Path
    """For configuration files."""

    def make(
        self, kind: str, model: str, *, ranks: int, zero: int, micro_batch: int, dtype: str = "fp32", **extra: Any
    ) -> WorkerGroup:
        """A fresh `kind` worker ("language:LanguageWorker") on `ranks` processes; drive it through `use`."""
        kwargs = {
            "model": model,
            "dtype": dtype,
            "optimizer": OPTIMIZER,
            "sharding": ShardingConfig(
                ranks=ranks, zero=zero, micro_batch=micro_batch, ds_config=self._zero3() if zero == 3 else None
            ),
            "total_steps": TOTAL_STEPS,
            "seed": 3,
            "timeouts": TimeoutsConfig(collective=60.0),
        }
        group = self.groups[ranks]
        target = kind if kind.startswith("tests.") else f"cai_dist.workers.{kind}"
        group.broadcast("make", "make", target, kwargs | extra)
        return group

    def _zero3(self) -> str:
        """The packaged configuration, but tensors as small as a test's are split over ranks, too."""
        settings = json.loads((Path(cai_dist.__file__).parent / "ds_configs" / "zero3.json").read_text("utf-8"))
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        target = self.folder / "zero3.json"
        target.write_text(json.dumps(settings), "utf-8")
        return str(target)


class PlainAdam:
    """Optimiser, clipping and schedule of `OPTIMIZER` in nothing but torch."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self._parameters = list(parameters)
        matrices = [p for p in self._parameters if p.dim() > 1]
        others = [p for p in self._parameters if p.dim() == 1]  # of a Llama: its norms, which do not decay
        groups = [{"params": matrices, "weight_decay": OPTIMIZER.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW(groups, betas=OPTIMIZER.betas, eps=OPTIMIZER.eps)
        self._steps = 0

    def step(self, loss: torch.Tensor) -> float:
        """One step down the gradient of `loss`; returns its value."""
        self._adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, OPTIMIZER.grad_clip)
        for group in self._adam.param_groups:
            group["lr"] = learning_rate(OPTIMIZER, self._steps, TOTAL_STEPS)
        self._adam.step()
        self._steps += 1
        return loss.item()


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
