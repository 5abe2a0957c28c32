"""The batch identity: how samples become mini-batches, and these the passes of ranks, as an equation with numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cai_dist.config.training import ShardingConfig


@dataclass(frozen=True)
class BatchSplit:
    """One optimiser step of one role. `places`: micro-batch places that stay empty, where it does not come out even.
    `ranks`: those with micro-batches of their own; each is a group of `together` that compute these together."""

    role: str
    batch: int
    ranks: int
    micro_batch: int
    passes: int
    capped: bool
    """`micro_batch` follows from a cap on tokens and sequences of full length."""
    together: int = 1

    @property
    def places(self) -> int:
        """Empty ones."""
        return self.ranks * self.micro_batch * self.passes - self.batch

    def equation(self) -> str:
        """The split in words, such as "64 = 4 ranks x 2 sequences x 8 passes"."""
        who = f"{self.ranks} {_plural(self.ranks, 'rank')}"
        if self.together > 1:
            who = f"{self.ranks} {_plural(self.ranks, 'group')} of {self.together} ranks"
        shown = f"{who} x {self.micro_batch} {_plural(self.micro_batch, 'sequence')}"
        shown += f" x {self.passes} {_plural(self.passes, 'pass', 'passes')}"
        rest = f" - {self.places} empty places" if self.places else ""
        return f"{self.batch} = {shown}{rest}"

    def remark(self) -> str:
        """What to change where it does not come out even; empty where it does."""
        if not self.places:
            return ""
        waste = self.places / (self.batch + self.places)
        best = [size for size in range(1, self.micro_batch + 1) if self.batch % (self.ranks * size) == 0]
        hint = (
            f"micro_batch {best[-1]} is even" if best else f"no micro-batch of {self.ranks} ranks divides {self.batch}"
        )
        return f"not even: {waste:.0%} of the places stay empty (results are exact all the same); {hint}"


def split(role: str, batch: int, sharding: ShardingConfig, sequence: int, per_item: int = 1) -> BatchSplit:
    """The split of `batch` items that are `per_item` sequences of at most `sequence` tokens each."""
    cap = sharding.max_tokens_per_micro_batch
    size = max(1, cap // (sequence * per_item)) if cap else sharding.micro_batch
    ranks = sharding.data_ranks
    size = min(size, math.ceil(batch / ranks))
    passes = max(1, math.ceil(batch / (ranks * size)))
    return BatchSplit(role, batch, ranks, size, passes, cap is not None, sharding.sequence_parallel)


def rollout_equation(prompts: int, samples: int, mini_batch: int, epochs: int) -> str:
    """An iteration in words, such as "256 prompts x 1 sample = 256 = 4 mini-batches x 64, 1 epoch: 4 optimiser steps an
    iteration"."""
    total = prompts * samples
    parts = total // mini_batch
    return (
        f"{prompts} prompts x {samples} {_plural(samples, 'sample')} = {total} = {parts} "
        f"{_plural(parts, 'mini-batch', 'mini-batches')} x {mini_batch}; {epochs} {_plural(epochs, 'epoch')}: "
        f"{parts * epochs} optimiser {_plural(parts * epochs, 'step')} an iteration"
    )


def _plural(count: int, one: str, many: str = "") -> str:
    return one if count == 1 else many or one + "s"
