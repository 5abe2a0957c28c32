"""Training of the preference model from soft labels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cai_dist.config.training import Dtype, Layout
from cai_dist.data.batches import pair_batch
from cai_dist.engines.train import Model
from cai_dist.losses.preference import soft_preference_loss
from cai_dist.models.load import load_scalar
from cai_dist.models.scalar import ScalarHeadModel
from cai_dist.types import ScoredPair, StepShard
from cai_dist.workers.base import TrainedWorker
from cai_dist.workers.forward import last_token_scores


class PreferenceWorker(TrainedWorker):
    """One rank of the preference model. A score is read at the last token of a side."""

    def build(self, source: str, dtype: Dtype, seed: int, layout: Layout) -> ScalarHeadModel:
        """A scalar head (seeded, unless `source` has one) on the trunk in `source`."""
        return load_scalar(source, dtype, seed, layout)

    def train_step(self, shard: StepShard[ScoredPair]) -> dict[str, float]:
        """One optimiser step; `shard.denominator` is the global number of pairs."""
        return self.engine.step(shard.micro_batches, self._loss, shard.denominator)

    def pair_scores(self, shard: StepShard[ScoredPair]) -> list[tuple[float, float]]:
        """Raw scores (logits) of both sides of each pair of this rank, in order."""
        return [pair for part in self.engine.infer(shard.micro_batches, self._scores) for pair in part]

    def _loss(self, model: Model, items: Sequence[ScoredPair], denominator: float) -> tuple[Tensor, dict[str, Tensor]]:
        batch = pair_batch(items).to(self.engine.device)
        scores_a, scores_b = batch.split(last_token_scores(model, batch.tokens))
        return soft_preference_loss(scores_a, scores_b, batch.p_a, denominator, batch.valid)

    def _scores(self, model: Model, items: Sequence[ScoredPair]) -> list[tuple[float, float]]:
        batch = pair_batch(items).to(self.engine.device)
        scores_a, scores_b = batch.split(last_token_scores(model, batch.tokens))
        return list(zip(scores_a.tolist(), scores_b.tolist(), strict=True))[: len(items)]
