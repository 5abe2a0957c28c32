"""Training of the model that rates how harmful an answer is, 0 to 4 (2212.08073, section 4.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cai_dist.config.training import Dtype, Layout
from cai_dist.data.batches import sequence_batch
from cai_dist.data.device import moved_together
from cai_dist.engines.protocols.training import Model
from cai_dist.losses.rating import rating_loss
from cai_dist.models.load import load_scalar
from cai_dist.models.partition import Partition
from cai_dist.models.scalar import ScalarHeadModel
from cai_dist.types import RatedSequence, StepShard
from cai_dist.workers.base import TrainedWorker
from cai_dist.workers.forward import last_token_scores


class RatingWorker(TrainedWorker):
    """One rank of a scalar model whose score, read at the last token, is the rating itself."""

    def build(
        self, source: str, dtype: Dtype, seed: int, layout: Layout, partition: Partition | None
    ) -> ScalarHeadModel:
        """A scalar head (seeded) on the trunk in `source`."""
        return load_scalar(source, dtype, seed, layout, partition)

    def train_step(self, shard: StepShard[RatedSequence]) -> dict[str, float]:
        """One optimiser step; `shard.denominator` is the global number of answers."""
        return self.engine.step(shard.micro_batches, self._loss, shard.denominator)

    def _loss(
        self, model: Model, items: Sequence[RatedSequence], denominator: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch = sequence_batch(items)[0].to(self.engine.device)
        scores = last_token_scores(model, batch)
        # The stand-in of an empty micro-batch has a row, which counts for nothing.
        given = torch.tensor([item.rating for item in items] or [0.0], dtype=torch.float32)
        (ratings,) = moved_together([given], scores.device)
        valid = torch.full(ratings.shape, bool(items), dtype=torch.bool, device=scores.device)
        return rating_loss(scores, ratings, denominator, valid)
