"""The policy of PPO: trained, asked for log-probabilities, and the source of weight transfers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from cai_dist.config.ppo import PpoConfig
from cai_dist.config.training import Dtype, Layout
from cai_dist.data.batches import TokenBatch, all_response_rows, sample_batch, trajectory_batch
from cai_dist.distributed.process_group import listening_store
from cai_dist.engines.protocols.training import Model
from cai_dist.errors import WeightTransferError
from cai_dist.experience.moments import NO_WHITENING, Whitening
from cai_dist.experience.sample_checks import kept_rows
from cai_dist.experience.trajectories import TrajectoryRequest, make_trajectories
from cai_dist.losses.policy import PolicyObjective, policy_loss, token_means
from cai_dist.models.causal import CausalModel
from cai_dist.models.load import load_causal
from cai_dist.models.partition import Partition
from cai_dist.types import (
    Generation,
    KeepRemote,
    RankInfo,
    StepShard,
    TensorSpec,
    Trajectory,
    WeightPart,
    WeightPlan,
    WeightProbe,
)
from cai_dist.types.ragged import Array, Ragged
from cai_dist.weight_sync.broadcast import Rendezvous, WeightSender
from cai_dist.weight_sync.probe import probe_of, probe_sample
from cai_dist.weight_sync.segments import SegmentSender, SegmentTicket
from cai_dist.weight_sync.segments_cuda import collect
from cai_dist.workers.base import TrainedWorker
from cai_dist.workers.forward import batch_logprobs, batch_logprobs_and_entropy


class PolicyWorker(TrainedWorker):
    """One rank of the policy. `temperature` is the sampler's, `objective` what its loss is made of; `ppo` is for
    `make_trajectories`."""

    def __init__(
        self, info: RankInfo, *, objective: PolicyObjective, temperature: float, ppo: PpoConfig, **kwargs: Any
    ) -> None:
        super().__init__(info, **kwargs)
        self._ppo = ppo
        self._objective, self._temperature = objective, temperature
        self._meeting_store: Any = None
        self._sender: WeightSender | None = None
        self._segment: SegmentSender | None = None

    def build(self, source: str, dtype: Dtype, seed: int, layout: Layout, partition: Partition | None) -> CausalModel:
        """The causal LM in `source`."""
        built = load_causal(source, dtype, layout, partition)
        self._vocabulary = int(built.hf.config.get_text_config().vocab_size)
        return built

    def train_step(
        self, shard: StepShard[Trajectory], kl_coefficient: float, whitening: Whitening | None
    ) -> dict[str, float]:
        """One optimiser step; `shard.denominator` is that of the loss, over all ranks; `whitening` that of the
        advantages of all samples of the iteration.

        Returns: `loss`, means over the step's response tokens (`losses.policy.token_means`), and what the engine adds.
        """
        loss = partial(self._loss, kl_coefficient=kl_coefficient, whitening=whitening or NO_WHITENING)
        return token_means(self.engine.step(shard.micro_batches, loss, shard.denominator))

    def make_trajectories(self, request: TrajectoryRequest) -> KeepRemote[Trajectory]:
        """What is trained on, of some samples. Not collective."""
        return make_trajectories(request, self._ppo)

    def logprobs(self, shard: StepShard[Generation], temperature: float) -> KeepRemote[Array]:
        """Log-probabilities (nats) of the response tokens of each sample of this rank, in order; kept."""
        samples = [sample for part in shard.micro_batches for sample in part]
        return kept_rows(self.info.role, samples, self._response_rows(shard.micro_batches, temperature))

    def _response_rows(self, parts: Sequence[Sequence[Generation]], temperature: float) -> Ragged:
        def rows(model: Model, items: Sequence[Generation]) -> tuple[TokenBatch, Tensor]:
            batch = sample_batch(items).to(self.engine.device)
            return batch.on_host, batch_logprobs(model, batch, temperature)

        return all_response_rows(self.engine.infer(parts, rows))

    def reference_logprobs(self, shard: StepShard[Generation], temperature: float) -> KeepRemote[Array]:
        """Log-probabilities under the model that the training started from: this one with its LoRA adapter off."""
        with self.engine.adapters_off():
            return self.logprobs(shard, temperature)

    def _loss(
        self,
        model: Model,
        items: Sequence[Trajectory],
        denominator: float,
        kl_coefficient: float,
        whitening: Whitening,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch = trajectory_batch(items, whitening.mean, whitening.deviation).to(self.engine.device)
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
            lengths=batch.tokens.lengths,
        )

    # ---- weight transfer, sending side: a plan, then its buckets

    def weight_plan(self, bucket_bytes: int, held: Sequence[str | None]) -> WeightPlan:
        """What a transfer sends to engines that say `held` (`RolloutWorker.weights_held`)."""
        return self.engine.weights.plan(bucket_bytes, held)

    def probe(self) -> WeightProbe:
        """What this model says of a short sequence, for engines that have its weights."""
        sample = probe_sample(self._vocabulary)
        (row,) = self._response_rows([[sample]], 1.0)
        return probe_of(sample, row)

    def weight_part(self, bucket: Sequence[TensorSpec], merge: bool) -> WeightPart:
        """This rank's part of a bucket."""
        return self.engine.weights.part(bucket, merge)

    def open_meeting(self, name: str, senders: tuple[int, ...], engines: int, timeout: float) -> Rendezvous:
        """On rank 0: where the processes of a broadcast meet."""
        self._meeting_store, port = listening_store(self.info.master_addr, timeout)
        return Rendezvous(self.info.master_addr, port, name, senders, engines, timeout)

    def join_broadcast(self, meeting: Rendezvous) -> None:
        """Meet the engines, where this rank is one that sends; what was before is dropped."""
        self._sender = None
        self._sender = WeightSender(meeting, self.info.rank, self._meeting_store)

    def broadcast_weights(self, plan: WeightPlan) -> None:
        """Send the buckets whose turn is this rank's, and gather the others with it."""
        if self._sender is None:
            raise WeightTransferError("a broadcast of weights before the processes have met")
        self._sender.send(self.engine.weights, plan)

    def open_segment(self, plan: WeightPlan) -> SegmentTicket:
        """Make the segment of this rank for plans like this one; what was before is dropped. Raises ConfigError."""
        self._segment = None
        self._segment = SegmentSender(plan.buckets, self.info.rank, self.info.world_size)
        return self._segment.ticket

    def fill_segment(self, plan: WeightPlan, version: int) -> None:
        """Copy this rank's part of every bucket into its segment. Raises WeightTransferError."""
        if self._segment is None:
            raise WeightTransferError("a transfer by shared memory before there is a segment")
        self._segment.fill(self.engine.weights, plan, version)

    def lend_weights(self, plan: WeightPlan, version: int) -> SegmentTicket:
        """Copy the whole weights to a segment on this rank's GPU, for the engine on the same GPU. It stays until
        `end_loan`. Collective. Raises ConfigError, WeightTransferError."""
        self._segment = None
        self._segment = SegmentSender(plan.buckets, on_gpu=True)
        self._segment.fill(self.engine.weights, plan, version)
        return self._segment.ticket

    def end_loan(self) -> None:
        """The engine has let go of the segment: its memory goes back to the GPU."""
        self._segment = None
        collect()
