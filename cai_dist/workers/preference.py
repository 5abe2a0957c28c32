"""Training of the preference model: from soft labels, and before that from ranked answers of people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cai_dist.config.training import Dtype, Layout
from cai_dist.data.batches import PairBatch, pair_batch
from cai_dist.engines.protocols.training import Model
from cai_dist.losses.language import language_loss
from cai_dist.losses.preference import soft_preference_loss
from cai_dist.models.load import load_scalar, load_scalar_with_language
from cai_dist.models.partition import Partition
from cai_dist.models.scalar import ScalarHeadModel
from cai_dist.types import LabelledPair, RankInfo, ScoredPair, StepShard
from cai_dist.workers.base import TrainedWorker
from cai_dist.workers.forward import last_token_scores, pairs_of


class PreferenceWorker(TrainedWorker):
    """One rank of the preference model. A score is read at the last token of a side. `margin`: see the loss."""

    def __init__(self, info: RankInfo, *, margin: float = 0.0, **kwargs: Any) -> None:
        super().__init__(info, **kwargs)
        self._margin = margin

    def build(
        self, source: str, dtype: Dtype, seed: int, layout: Layout, partition: Partition | None
    ) -> ScalarHeadModel:
        """A scalar head (seeded, unless `source` has one) on the trunk in `source`."""
        return load_scalar(source, dtype, seed, layout, partition)

    def train_step(self, shard: StepShard[ScoredPair]) -> dict[str, float]:
        """One optimiser step; `shard.denominator` is the global number of pairs."""
        return self.engine.step(shard.micro_batches, self._loss, shard.denominator)

    def pair_scores(self, shard: StepShard[ScoredPair]) -> list[tuple[float, float]]:
        """Raw scores (logits) of both sides of each pair of this rank, in order."""
        return pairs_of(self.engine.infer(shard.micro_batches, self._scores))

    def _loss(self, model: Model, items: Sequence[ScoredPair], denominator: float) -> tuple[Tensor, dict[str, Tensor]]:
        batch = pair_batch(items).to(self.engine.device)
        scores_a, scores_b = batch.split(last_token_scores(model, batch.tokens))
        return soft_preference_loss(scores_a, scores_b, batch.p_a, denominator, batch.valid, self._margin)

    def _scores(self, model: Model, items: Sequence[ScoredPair]) -> Tensor:
        """[pairs, 2]."""
        batch = pair_batch(items).to(self.engine.device)
        return torch.stack(batch.split(last_token_scores(model, batch.tokens)), dim=1)[: len(items)]


class PretrainingWorker(TrainedWorker):
    """One rank of the preference model while it learns ranked answers and, with `language_weight` > 0, goes on learning
    language (2112.00861). What it exports is a preference model like any other, without a language head."""

    def __init__(self, info: RankInfo, *, language_weight: float, **kwargs: Any) -> None:
        self._language_weight = language_weight
        super().__init__(info, **kwargs)

    def build(
        self, source: str, dtype: Dtype, seed: int, layout: Layout, partition: Partition | None
    ) -> ScalarHeadModel:
        """A seeded scalar head on the trunk in `source`, with the language head of `source` where it is needed."""
        load = load_scalar_with_language if self._language_weight else load_scalar
        return load(source, dtype, seed, layout, partition)

    def train_step(self, shard: StepShard[LabelledPair]) -> dict[str, float]:
        """One optimiser step; `shard.denominator` is the global number of pairs."""
        return self.engine.step(shard.micro_batches, self._loss, shard.denominator)

    def _loss(
        self, model: Model, items: Sequence[LabelledPair], denominator: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over pairs of -log sigma(score of A - score of B) and `language_weight` times the mean over the tokens
        of A's answer of -log p."""
        batch = better_answers_batch(items).to(self.engine.device)
        tokens = batch.tokens
        if not self._language_weight:
            scores = last_token_scores(model, tokens)
            return soft_preference_loss(*batch.split(scores), batch.p_a, denominator, batch.valid)
        host = tokens.on_host
        heads, logprobs = model(tokens.ids, host.lengths, host.response_mask)
        ranking, metrics = soft_preference_loss(
            *batch.split(heads[tokens.last]), batch.p_a, denominator, batch.valid
        )  # fmt: skip
        language, _ = language_loss(logprobs, answer_weights(batch), denominator)
        loss = ranking + self._language_weight * language
        parts = {"ranking_loss": ranking.detach(), "language_loss": language.detach()}
        return loss, {**metrics, **parts, "loss": loss.detach()}


def better_answers_batch(pairs: Sequence[LabelledPair]) -> PairBatch:
    """`pair_batch` in which the response tokens are those of side A's answer, without its label."""
    batch = pair_batch(pairs)
    if not pairs:
        return batch
    starts = torch.tensor([pair.answer_start for pair in pairs])
    prompts = torch.cat([starts, batch.tokens.lengths[len(pairs) :]])
    return replace(batch, tokens=replace(batch.tokens, prompt_lengths=prompts))


def answer_weights(batch: PairBatch) -> Tensor:
    """Float [N]: 1 / (length of the answer) at each response token, so that every answer counts alike; 0 elsewhere."""
    tokens = batch.tokens
    counts = (tokens.lengths - tokens.prompt_lengths).clamp(min=1)
    shares = torch.repeat_interleave(1.0 / counts, tokens.lengths, output_size=len(tokens.ids))
    return shares * tokens.response_mask
