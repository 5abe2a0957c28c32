"""The update phase: epochs of shuffled mini-batches, one optimiser step each of policy and value, side by side."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean, pvariance

from cai_dist.config.run import PpoConfig
from cai_dist.coordinator.prompts import derive_seed
from cai_dist.coordinator.protocols import PpoRoles
from cai_dist.coordinator.state import PpoState
from cai_dist.data.batches import epoch_order
from cai_dist.types import Trajectory


def run(
    roles: PpoRoles, trajectories: Sequence[Trajectory], config: PpoConfig, state: PpoState, seed: int
) -> dict[str, float]:
    """Train on one iteration's samples.

    Both roles step on the same mini-batch at the same time; neither reads what the other learns. During the first
    `value_warmup` iterations only the value model steps.

    Returns: means over the steps of what the roles report, as `policy_*` and `value_*`, `explained_variance` of the
        values that the rollout phase saw, and `update_seconds`.

    Raises: WorkerError, WorkerTimeout.
    """
    began = time.perf_counter()
    reports: defaultdict[str, list[float]] = defaultdict(list)
    for batch in mini_batches(trajectories, config, derive_seed(seed, "update", state.iteration)):
        steps = {"value": roles.update_value(batch)}
        if state.trains_policy(config):
            steps["policy"] = roles.update_policy(batch)
        for role, step in steps.items():
            for name, number in step.result().items():
                reports[f"{role}_{name}"].append(number)
    metrics = {name: fmean(numbers) for name, numbers in reports.items()}
    return {
        **metrics,
        "explained_variance": explained_variance(trajectories),
        "update_seconds": time.perf_counter() - began,
    }


def mini_batches(trajectories: Sequence[Trajectory], config: PpoConfig, seed: int) -> Iterator[list[Trajectory]]:
    """Every sample once an epoch, in an order of (seed, epoch)."""
    for epoch in range(config.epochs):
        order = epoch_order(len(trajectories), seed, epoch)
        for start in range(0, len(order), config.mini_batch):
            yield [trajectories[i] for i in order[start : start + config.mini_batch]]


def explained_variance(trajectories: Sequence[Trajectory]) -> float:
    """1 - Var(return - value) / Var(return) over all tokens: 1 perfect, 0 no better than a constant.

    0 where all returns are equal.
    """
    returns = [number for item in trajectories for number in item.returns]
    values = [number for item in trajectories for number in item.values]
    spread = pvariance(returns)
    if spread == 0:
        return 0.0
    return 1.0 - pvariance([target - value for target, value in zip(returns, values, strict=True)]) / spread
