"""The value model of PPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from cai_dist.config.training import Dtype, Layout
from cai_dist.data.batches import TokenBatch, all_response_rows, sample_batch, trajectory_batch
from cai_dist.data.device import brought_together
from cai_dist.engines.protocols.training import Model
from cai_dist.experience.sample_checks import kept_rows
from cai_dist.losses.value import value_loss
from cai_dist.models.load import load_scalar
from cai_dist.models.partition import Partition
from cai_dist.models.scalar import ScalarHeadModel
from cai_dist.types import Generation, KeepRemote, RankInfo, StepShard, Trajectory
from cai_dist.types.ragged import Array
from cai_dist.workers.base import TrainedWorker
from cai_dist.workers.forward import batch_values, values_and_last


class ValueWorker(TrainedWorker):
    """One rank of the value model. `value_clip` is the largest rewarded move away from the rollout's value."""

    def __init__(self, info: RankInfo, *, value_clip: float, **kwargs: Any) -> None:
        super().__init__(info, **kwargs)
        self._clip = value_clip

    def build(
        self, source: str, dtype: Dtype, seed: int, layout: Layout, partition: Partition | None
    ) -> ScalarHeadModel:
        """A scalar head (seeded, unless `source` has one) on the trunk in `source`."""
        return load_scalar(source, dtype, seed, layout, partition)

    def train_step(self, shard: StepShard[Trajectory]) -> dict[str, float]:
        """One optimiser step; `shard.denominator` is the global number of response tokens."""
        return self.engine.step(shard.micro_batches, self._loss, shard.denominator)

    def values(self, shard: StepShard[Generation]) -> KeepRemote[Array]:
        """V of the state before each response token of each sample of this rank, in order, and, last, of the state
        after them: one number more than tokens; kept."""
        samples = [sample for part in shard.micro_batches for sample in part]
        parts = self.engine.infer(shard.micro_batches, self._values)
        numbers = brought_together([found.float() for _, before, after in parts for found in (before, after)])
        befores = all_response_rows([(batch, found) for (batch, _, _), found in zip(parts, numbers[::2], strict=True)])
        found = befores.appended(np.concatenate([np.zeros(0, np.float32), *(after.numpy() for after in numbers[1::2])]))
        return kept_rows(self.info.role, samples, found, more=1)

    def _loss(self, model: Model, items: Sequence[Trajectory], denominator: float) -> tuple[Tensor, dict[str, Tensor]]:
        batch = trajectory_batch(items).to(self.engine.device)
        values = batch_values(model, batch.tokens)
        mask = batch.tokens.response_mask
        return value_loss(values, batch.old_values, batch.returns, mask, self._clip, denominator)

    def _values(self, model: Model, items: Sequence[Generation]) -> tuple[TokenBatch, Tensor, Tensor]:
        batch = sample_batch(items).to(self.engine.device)
        before, after = values_and_last(model, batch)
        return batch.on_host, before, after[: len(batch)]
