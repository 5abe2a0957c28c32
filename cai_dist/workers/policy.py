"""The policy of PPO: trained, asked for log-probabilities, and the source of weight transfers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cai_dist.config.training import Dtype
from cai_dist.data.batches import response_rows, sample_batch, trajectory_batch
from cai_dist.engines.train import Model, buckets
from cai_dist.losses.logprobs import entropy_from_logits, token_logprobs
from cai_dist.losses.policy import ppo_policy_loss
from cai_dist.losses.shapes import masked_sum
from cai_dist.models.causal import CausalModel
from cai_dist.models.load import load_causal
from cai_dist.types import Generation, RankInfo, StepShard, TensorSpec, Trajectory
from cai_dist.workers.base import TrainedWorker
from cai_dist.workers.forward import batch_logprobs


class PolicyWorker(TrainedWorker):
    """One rank of the policy. `temperature` is the sampler's, `clip` the half width of the ratio's trust interval."""

    def __init__(self, info: RankInfo, *, clip: float, temperature: float, **kwargs: Any) -> None:
        super().__init__(info, **kwargs)
        self._clip, self._temperature = clip, temperature
        self._plan: tuple[tuple[TensorSpec, ...], ...] = ()

    def build(self, source: str, dtype: Dtype, seed: int) -> CausalModel:
        """The causal LM in `source`."""
        return load_causal(source, dtype)

    def train_step(self, shard: StepShard[Trajectory]) -> dict[str, float]:
        """One optimiser step; `shard.denominator` is the global number of response tokens."""
        return self.engine.step(shard.micro_batches, self._loss, shard.denominator)

    def logprobs(self, shard: StepShard[Generation], temperature: float) -> list[list[float]]:
        """Log-probabilities (nats) of the response tokens of each sample of this rank, in order."""

        def rows(model: Model, items: Sequence[Generation]) -> list[list[float]]:
            batch = sample_batch(items).to(self.engine.device)
            return response_rows(batch, batch_logprobs(model, batch, temperature))

        return [row for part in self.engine.infer(shard.micro_batches, rows) for row in part]

    def _loss(self, model: Model, items: Sequence[Trajectory], denominator: float) -> tuple[Tensor, dict[str, Tensor]]:
        batch = trajectory_batch(items).to(self.engine.device)
        mask = batch.tokens.response_mask
        logits = model(batch.tokens.ids, batch.tokens.attention_mask)
        logprobs = token_logprobs(logits, batch.tokens.ids, self._temperature)
        loss, metrics = ppo_policy_loss(logprobs, batch.old_logprobs, batch.advantages, mask, self._clip, denominator)
        with torch.no_grad():
            entropy = masked_sum(entropy_from_logits(logits, self._temperature), mask) / denominator
        return loss, metrics | {"entropy": entropy}

    # ---- weight transfer, sending side: plan, then bucket 0, 1, ... on all ranks

    def weight_plan(self, bucket_bytes: int) -> tuple[tuple[TensorSpec, ...], ...]:
        """The buckets of a transfer; together they are the manifest."""
        self._plan = tuple(buckets(self.engine.parameter_specs(), bucket_bytes))
        return self._plan

    def weight_bucket(self, index: int) -> dict[str, Any]:
        """The whole tensors of one bucket of the plan as numpy arrays on rank 0; nothing on the others."""
        return self.engine.full_parameters([spec.name for spec in self._plan[index]])
