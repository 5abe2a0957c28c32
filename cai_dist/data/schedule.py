"""Schedules: from lists of items to equal ones over ranks, and the order in which training sees its data.

Everything here is a pure function: what a step trains on follows from (number of items, seed, step), so the data cursor
of a checkpoint is the step itself, and who computes what follows from the lengths of the items.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from cai_dist.config.training import Layout, ShardingConfig
from cai_dist.errors import DataError
from cai_dist.types import SampleRef, ScoredPair, TokenSequence, TrajectoryRef

T = TypeVar("T")
R = TypeVar("R")
Share = list[int]
"""Indices of items, the costliest first."""


COST_LENGTH = 4096
"""Tokens of a sequence at which attention costs as much as everything else."""


@dataclass(frozen=True, slots=True)
class MicroBatchLimits:
    """How much one micro-batch may hold."""

    items: int
    """At most this many items, where `tokens` is not set."""
    tokens: int | None = None
    """Hard cap on the tokens that are computed."""
    padded: bool = False
    """Tokens are those of a rectangle, rows x longest, not a sum."""

    @classmethod
    def of(cls, sharding: ShardingConfig, layout: Layout) -> MicroBatchLimits:
        """The limits of a trained role."""
        return cls(sharding.micro_batch, sharding.max_tokens_per_micro_batch, layout == "padded")

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether items of these lengths may be one micro-batch."""
        if self.tokens is None:
            return len(lengths) <= self.items
        return (len(lengths) * max(lengths, default=0) if self.padded else sum(lengths)) <= self.tokens


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """A plan of which rank computes which items in which micro-batch. `parts[rank][micro_batch]` holds indices of
    items."""

    parts: tuple[tuple[tuple[int, ...], ...], ...]
    alike: int = 1
    """So many ranks, one behind the other, compute the same items."""

    def split(self, items: Sequence[T]) -> list[tuple[tuple[T, ...], ...]]:
        """Micro-batches of items, by rank."""
        return [tuple(tuple(items[i] for i in part) for part in rank) for rank in self.parts]

    def restore(self, results_per_rank: Sequence[Sequence[R]]) -> list[R]:
        """Results, one an item in the order of each rank's micro-batches, back in the order of the items.

        Of ranks that compute the same, the first one's count. Raises: ValueError if a rank returned more or fewer
        results than it had items.
        """
        order = [[i for part in rank for i in part] for rank in self.parts]
        sizes, expected = [len(found) for found in results_per_rank], [len(rank) for rank in order]
        if sizes != expected:
            raise ValueError(f"the ranks had {expected} items but returned {sizes} results")
        by_item = {
            i: result
            for rank, results in zip(order[:: self.alike], results_per_rank[:: self.alike], strict=True)
            for i, result in zip(rank, results, strict=True)
        }
        return [by_item[i] for i in range(len(by_item))]


def plan_schedule(lengths: Sequence[int], ranks: int, limits: MicroBatchLimits) -> BatchPlan:
    """Split items of these `lengths` (tokens) over ranks and micro-batches.

    Every rank gets the same number of micro-batches (at least one; some may be empty), each within `limits`. Ranks are
    balanced by cost, tokens + tokens^2 / COST_LENGTH of each item: none has more than the mean and one item. With a
    token cap there are as few micro-batches as first-fit-decreasing needs for the rank that needs most; without one
    there are ceil(items / (ranks x limits.items)), and ranks differ by at most one item. A plan depends on nothing but
    the arguments.

    Raises: ValueError unless ranks and limits are at least 1; DataError for an item longer than the cap.
    """
    if ranks < 1 or limits.items < 1:
        raise ValueError(f"ranks={ranks} and items={limits.items} must be at least 1")
    costs = [length + length * length / COST_LENGTH for length in lengths]
    order = sorted(range(len(lengths)), key=lambda i: (-costs[i], i))
    if limits.tokens is None:
        shares = _deal(order, costs, ranks)
        steps = max(1, math.ceil(len(lengths) / (ranks * limits.items)))
        # Rows of like length together where the rest is padded, else micro-batches of like cost.
        parts = [_even_parts(share, steps) if limits.padded else _deal(share, costs, steps) for share in shares]
    else:
        if lengths and max(lengths) > limits.tokens:
            raise DataError(
                f"max_tokens_per_micro_batch={limits.tokens}: an example has {max(lengths)} tokens; raise it in its "
                "sharding, or lower models.context"
            )
        shares = _spread(order, costs, ranks)
        filled = [_filled(share, lengths, limits) for share in shares]
        steps = max(1, *map(len, filled))
        parts = [_levelled(part, lengths, costs, steps, limits) for part in filled]
    return BatchPlan(tuple(tuple(tuple(sorted(part)) for part in rank) for rank in parts))


def plan_items(
    items: Sequence[object], ranks: int, sharding: ShardingConfig, layout: Layout, *, added: int = 0
) -> BatchPlan:
    """`plan_schedule` for the items themselves, within the limits of `sharding`; `added`: tokens that the worker may
    put after each. Neighbouring ranks get the same where they compute it together (`sequence_parallel`)."""
    limits, alike = MicroBatchLimits.of(sharding, layout), sharding.sequence_parallel
    plan = plan_schedule([token_count(item, limits.padded) + added for item in items], ranks // alike, limits)
    return BatchPlan(tuple(rank for rank in plan.parts for _ in range(alike)), alike)


def token_count(item: object, padded: bool = False) -> int:
    """Tokens that an item adds to a micro-batch: prompt and response of a sample, both sides of a comparison (both as
    long as the longer one where rows are padded)."""
    if isinstance(item, TokenSequence):
        return len(item.ids)
    if isinstance(item, ScoredPair):
        a, b = len(item.ids_a), len(item.ids_b)
        return 2 * max(a, b) if padded else a + b
    if isinstance(item, SampleRef | TrajectoryRef):
        return item.tokens
    return len(item.prompt_ids) + len(item.response_ids)  # type: ignore[attr-defined]


@lru_cache(maxsize=8)
def epoch_order(n: int, seed: int, epoch: int) -> tuple[int, ...]:
    """A permutation of 0..n-1 that depends on (seed, epoch) alone."""
    order = list(range(n))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(order)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Optimiser steps that see each of n items once: ceil(n / batch_size)."""
    return math.ceil(n / batch_size)


def step_indices(n: int, batch_size: int, seed: int, step: int) -> tuple[int, ...]:
    """The items of an optimiser step (0-based), a pure function of its number.

    Epochs follow each other, each in its own order. The last batch of an epoch is kept though it may be smaller: every
    item is seen exactly once an epoch, losses divide by the true count, and n < batch_size still trains.

    Raises: ValueError unless n and batch_size are at least 1 and step is not negative.
    """
    if n < 1 or batch_size < 1 or step < 0:
        raise ValueError(f"n={n} and batch_size={batch_size} must be at least 1 and step={step} at least 0")
    epoch, batch = divmod(step, steps_per_epoch(n, batch_size))
    return epoch_order(n, seed, epoch)[batch * batch_size : (batch + 1) * batch_size]


def _spread(order: Share, costs: Sequence[float], parts: int) -> list[Share]:
    """Each item to the part that has least so far."""
    shares: list[Share] = [[] for _ in range(parts)]
    loads = [(0.0, part) for part in range(parts)]
    for item in order:
        load, part = heapq.heappop(loads)
        shares[part].append(item)
        heapq.heappush(loads, (load + costs[item], part))
    return shares


def _deal(order: Share, costs: Sequence[float], parts: int) -> list[Share]:
    """Rounds of one item each, the costliest of a round to the part that has least so far: sizes differ by at most one
    and costs by at most one item, since a round narrows a difference or leaves one no wider than its own."""
    shares: list[Share] = [[] for _ in range(parts)]
    loads = [0.0] * parts
    for start in range(0, len(order), parts):
        ranked = sorted(range(parts), key=lambda part: (loads[part], part))
        for part, item in zip(ranked, order[start : start + parts], strict=False):
            shares[part].append(item)
            loads[part] += costs[item]
    return shares


def _even_parts(items: Share, parts: int) -> list[Share]:
    """Consecutive parts whose sizes differ by at most one."""
    return [items[len(items) * i // parts : len(items) * (i + 1) // parts] for i in range(parts)]


def _filled(share: Share, lengths: Sequence[int], limits: MicroBatchLimits) -> list[Share]:
    """One rank's items in few micro-batches: each into the first that it fits in, the longest first. Where rows are
    padded only the newest one is open: a short row beside long ones would be computed at their length."""
    parts: list[Share] = []
    for item in share:
        for part in parts[-1:] if limits.padded else parts:
            if limits.fits([lengths[i] for i in (*part, item)]):
                part.append(item)
                break
        else:
            parts.append([item])
    return parts


def _levelled(
    filled: list[Share], lengths: Sequence[int], costs: Sequence[float], steps: int, limits: MicroBatchLimits
) -> list[Share]:
    """One rank's items in exactly `steps` micro-batches of like cost; as they were filled (and empty ones) where that
    does not fit."""
    parts: list[Share] = [[] for _ in range(steps)]
    if not limits.padded:
        for item in sorted((i for part in filled for i in part), key=lambda i: (-costs[i], i)):
            open_parts = [part for part in parts if limits.fits([lengths[i] for i in (*part, item)])]
            if not open_parts:
                break
            min(open_parts, key=lambda part: sum(costs[i] for i in part)).append(item)
        else:
            return parts
    return filled + [[] for _ in range(steps - len(filled))]
