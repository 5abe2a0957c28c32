"""The policy of PPO: trained, asked for log-probabilities, and the source of weight transfers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from cai_dist.config.training import Dtype, Layout
from cai_dist.data.batches import response_rows, sample_batch, trajectory_batch
from cai_dist.engines.train import Model, buckets
from cai_dist.losses.policy import PolicyObjective, policy_loss, token_means
from cai_dist.models.causal import CausalModel
from cai_dist.models.load import load_causal
from cai_dist.types import Generation, RankInfo, StepShard, TensorSpec, Trajectory
from cai_dist.workers.base import TrainedWorker
from cai_dist.workers.forward import batch_logprobs, batch_logprobs_and_entropy


class PolicyWorker(TrainedWorker):
    """One rank of the policy. `temperature` is the sampler's, `objective` what its loss is made of."""

    def __init__(self, info: RankInfo, *, objective: PolicyObjective, temperature: float, **kwargs: Any) -> None:
        super().__init__(info, **kwargs)
        self._objective, self._temperature = objective, temperature
        self._plan: tuple[tuple[TensorSpec, ...], ...] = ()

    def build(self, source: str, dtype: Dtype, seed: int, layout: Layout) -> CausalModel:
        """The causal LM in `source`."""
        return load_causal(source, dtype, layout)

    def train_step(self, shard: StepShard[Trajectory], kl_coefficient: float) -> dict[str, float]:
        """One optimiser step; `shard.denominator` is that of the loss, over all ranks.

        Returns: `loss`, means over the step's response tokens (`losses.policy.token_means`), and what the engine adds.
        """
        loss = partial(self._loss, kl_coefficient=kl_coefficient)
        return token_means(self.engine.step(shard.micro_batches, loss, shard.denominator))

    def logprobs(self, shard: StepShard[Generation], temperature: float) -> list[list[float]]:
        """Log-probabilities (nats) of the response tokens of each sample of this rank, in order."""

        def rows(model: Model, items: Sequence[Generation]) -> list[list[float]]:
            batch = sample_batch(items).to(self.engine.device)
            return response_rows(batch, batch_logprobs(model, batch, temperature))

        return [row for part in self.engine.infer(shard.micro_batches, rows) for row in part]

    def reference_logprobs(self, shard: StepShard[Generation], temperature: float) -> list[list[float]]:
        """The same under the model that the training started from: this one with its LoRA adapter off."""
        with self.engine.adapters_off():
            return self.logprobs(shard, temperature)

    def _loss(
        self, model: Model, items: Sequence[Trajectory], denominator: float, kl_coefficient: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch = trajectory_batch(items).to(self.engine.device)
        entropy: Tensor | None = None
        if self._objective.entropy:  # entropies cost a pass over the vocabulary
            logprobs, entropy = batch_logprobs_and_entropy(model, batch.tokens, self._temperature)
        else:
            logprobs = batch_logprobs(model, batch.tokens, self._temperature)
        return policy_loss(
            logprobs,
            batch.old_logprobs,
            batch.advantages,
            batch.weights,
            batch.tokens.response_mask,
            denominator,
            self._objective,
            ref_logprobs=batch.ref_logprobs,
            kl_coefficient=kl_coefficient,
            entropy=entropy,
        )

    # ---- weight transfer, sending side: plan, then bucket 0, 1, ... on all ranks

    def weight_plan(self, bucket_bytes: int) -> tuple[tuple[TensorSpec, ...], ...]:
        """The buckets of a transfer; together they are the manifest."""
        self._plan = tuple(buckets(self.engine.parameter_specs(), bucket_bytes))
        return self._plan

    def weight_bucket(self, index: int) -> dict[str, Any]:
        """The whole tensors of one bucket of the plan as numpy arrays on rank 0; nothing on the others."""
        return self.engine.full_parameters([spec.name for spec in self._plan[index]])
