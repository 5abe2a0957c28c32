"""Training of the policy from comparisons, without a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from cai_dist.config.training import Dtype, Layout
from cai_dist.data.batches import PairBatch, pair_batch
from cai_dist.data.device import moved_together
from cai_dist.engines.protocols.training import Model
from cai_dist.losses.dpo import dpo_loss
from cai_dist.models.causal import CausalModel
from cai_dist.models.load import load_causal
from cai_dist.models.partition import Partition
from cai_dist.types import DpoPair, RankInfo, ScoredPair, StepShard
from cai_dist.workers.base import TrainedWorker
from cai_dist.workers.forward import batch_logprobs, pairs_of


class DpoWorker(TrainedWorker):
    """One rank of the policy. Before its first step, and with LoRA without its adapter, it is the reference itself."""

    def __init__(self, info: RankInfo, *, loss: Literal["dpo", "ipo"], beta: float, **kwargs: Any) -> None:
        super().__init__(info, **kwargs)
        self._kind, self._beta = loss, beta

    def build(self, source: str, dtype: Dtype, seed: int, layout: Layout, partition: Partition | None) -> CausalModel:
        """The causal LM in `source`."""
        return load_causal(source, dtype, layout, partition)

    def train_step(self, shard: StepShard[DpoPair]) -> dict[str, float]:
        """One optimiser step; `shard.denominator` is the global number of pairs."""
        return self.engine.step(shard.micro_batches, self._loss, shard.denominator)

    def pair_logprobs(self, shard: StepShard[ScoredPair]) -> list[tuple[float, float]]:
        """Log-probabilities (nats) of both answers of each pair of this rank under the present weights, in order."""
        return pairs_of(self.engine.infer(shard.micro_batches, self._pairs))

    def reference_logprobs(self, shard: StepShard[ScoredPair]) -> list[tuple[float, float]]:
        """Numbers like those of `pair_logprobs` under the reference: with LoRA the policy without its adapter, at any
        time; without, the policy itself, before its first step."""
        with self.engine.adapters_off():
            return self.pair_logprobs(shard)

    def _loss(self, model: Model, items: Sequence[DpoPair], denominator: float) -> tuple[Tensor, dict[str, Tensor]]:
        batch = answers_batch(items).to(self.engine.device)
        logprobs_a, logprobs_b = batch.split(answer_logprobs(model, batch))
        # The stand-in pair of an empty micro-batch needs a reference, too.
        given = torch.tensor([(x.ref_a, x.ref_b) for x in items] or [(0.0, 0.0)])
        (refs,) = moved_together([given], self.engine.device)
        return dpo_loss(
            logprobs_a, logprobs_b, refs[:, 0], refs[:, 1], batch.p_a, self._beta, denominator, batch.valid,
            kind=self._kind,
        )  # fmt: skip

    def _pairs(self, model: Model, items: Sequence[ScoredPair]) -> Tensor:
        """[pairs, 2]."""
        batch = answers_batch(items).to(self.engine.device)
        return torch.stack(batch.split(answer_logprobs(model, batch)), dim=1)[: len(items)]


def answers_batch(pairs: Sequence[ScoredPair]) -> PairBatch:
    """`pair_batch` in which the answers alone are response: `prompt_lengths` are those of the conversations."""
    batch = pair_batch(pairs)
    if not pairs:
        return batch
    prompts = torch.tensor([pair.prompt_tokens for pair in pairs]).repeat(2)
    return replace(batch, tokens=replace(batch.tokens, prompt_lengths=prompts))


def answer_logprobs(model: Model, batch: PairBatch) -> Tensor:
    """Log-probability (nats) [2B] of each answer with its end token, summed over its tokens."""
    tokens = batch.tokens
    logprobs = batch_logprobs(model, tokens, 1.0)
    answers = torch.arange(len(tokens.lengths), device=logprobs.device)
    owner = torch.repeat_interleave(answers, tokens.lengths, output_size=len(logprobs))
    return torch.zeros(len(answers), device=logprobs.device).index_add(0, owner, logprobs)
