"""The update phase: epochs of shuffled mini-batches, one optimiser step each of policy and value, side by side."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from cai_dist.config.ppo import PpoConfig
from cai_dist.config.seeds import derive_seed
from cai_dist.coordinator.protocols import Pending, PpoRoles
from cai_dist.coordinator.rollout_phase import Rollout
from cai_dist.coordinator.state import PpoState
from cai_dist.data.schedule import epoch_order
from cai_dist.experience.token_weights import denominator
from cai_dist.types import TrajectoryRef

Steps = dict[str, Pending[dict[str, float]]]
"""By role: one optimiser step under way."""


def run(
    roles: PpoRoles,
    rollout: Rollout,
    config: PpoConfig,
    state: PpoState,
    seed: int,
    meanwhile: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Train on one iteration's samples.

    Both roles step on the same mini-batch at the same time, where they share GPUs one after the other; neither reads
    what the other learns. During the first `value_warmup` iterations only the value model steps.

    A step is sent out before the one before it is waited for, so that no worker waits for the driver; each worker takes
    them in order. Not with `target_kl`, where the report of a step says whether there is another.

    With `target_kl` the first step that finds the policy further than that from the one that sampled is the policy's
    last of the iteration (it is known only once it is taken). The value model goes on: its target is the same however
    far the policy has moved.

    `meanwhile` is called again and again while steps are waited for.

    Returns: means over the steps of what the roles report, as `policy_*` and `value_*`, `policy_steps` taken,
        `policy_skipped` and `value_skipped` (steps that were not finite and not taken; where there are some),
        `early_stop_step` (the 1-based last step, where `target_kl` ended the policy's), `explained_variance` of the
        values that the rollout phase saw, and `update_seconds`.

    Raises: WorkerError, WorkerTimeout.
    """
    began = time.perf_counter()
    roles.enter("update")
    reports: defaultdict[str, list[float]] = defaultdict(list)
    metrics: dict[str, float] = {"policy_steps": 0.0}
    trains_policy, trains_value = state.trains_policy(config), config.defaults.needs_value
    before: Steps = {}

    def settle(steps: Steps) -> None:
        for role, step in steps.items():
            found = dict(step.result(meanwhile))
            if found.pop("skipped", 0):
                metrics[f"{role}_skipped"] = metrics.get(f"{role}_skipped", 0.0) + 1
                metrics["policy_steps"] -= 1 if role == "policy" else 0
            for name, number in found.items():
                reports[f"{role}_{name}"].append(number)

    for batch in mini_batches(rollout.trajectory_refs, config, derive_seed(seed, "update", state.iteration)):
        steps: Steps = {}
        if config.updates_take_turns:
            settle(before)
            before = {}
        if trains_value:
            steps["value"] = roles.update_value(batch)
        if trains_policy:
            if config.updates_take_turns:
                settle(steps)
                steps = {}
            steps["policy"] = roles.update_policy(
                batch, denominator(batch, config), state.kl.coefficient, rollout.whitening
            )
            metrics["policy_steps"] += 1
        if config.target_kl is None:
            settle(before)
            before = steps
            continue
        settle(steps)
        if trains_policy and max(reports["policy_approx_kl"][-1:], default=0.0) > config.target_kl:
            trains_policy = False
            metrics["early_stop_step"] = metrics["policy_steps"]
        if not (trains_policy or trains_value):
            break
    settle(before)
    if trains_value:
        metrics["explained_variance"] = rollout.explained_variance
    metrics |= {name: fmean(numbers) for name, numbers in reports.items()}
    return {**metrics, "update_seconds": time.perf_counter() - began}


def mini_batches(refs: Sequence[TrajectoryRef], config: PpoConfig, seed: int) -> Iterator[list[TrajectoryRef]]:
    """Every sample once an epoch, in an order of (seed, epoch)."""
    for epoch in range(config.epochs):
        order = epoch_order(len(refs), seed, epoch)
        for start in range(0, len(order), config.mini_batch):
            yield [refs[i] for i in order[start : start + config.mini_batch]]
