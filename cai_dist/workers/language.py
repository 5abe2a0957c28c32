"""Next-token training: pretraining of the micro-world and SL-CAI."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cai_dist.config.training import Dtype, Layout
from cai_dist.data.batches import sequence_batch
from cai_dist.data.device import moved_together
from cai_dist.engines.protocols.training import Model
from cai_dist.losses.language import language_loss
from cai_dist.models.causal import CausalModel
from cai_dist.models.load import load_causal
from cai_dist.models.partition import Partition
from cai_dist.types import StepShard, TokenSequence
from cai_dist.workers.base import TrainedWorker
from cai_dist.workers.forward import batch_logprobs


class LanguageWorker(TrainedWorker):
    """One rank of a causal LM that learns weighted tokens."""

    def build(self, source: str, dtype: Dtype, seed: int, layout: Layout, partition: Partition | None) -> CausalModel:
        """The causal LM in `source`."""
        return load_causal(source, dtype, layout, partition)

    def train_step(self, shard: StepShard[TokenSequence]) -> dict[str, float]:
        """One optimiser step; `shard.denominator` is the global sum of the weights."""
        return self.engine.step(shard.micro_batches, self._loss, shard.denominator)

    def _loss(
        self, model: Model, items: Sequence[TokenSequence], denominator: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch, weights = sequence_batch(items)
        logprobs = batch_logprobs(model, batch.to(self.engine.device), 1.0, wanted=weights != 0)
        (weights,) = moved_together([weights], self.engine.device)
        return language_loss(logprobs, weights, denominator)
