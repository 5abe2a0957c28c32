"""The reference of PPO's KL penalty: the SL-CAI model, never trained."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from cai_dist.config.run import TimeoutsConfig
from cai_dist.config.training import Dtype, HeadDtype, Layout, ShardingConfig
from cai_dist.data.batches import TokenBatch, all_response_rows, sample_batch
from cai_dist.engines.protocols.training import Model
from cai_dist.engines.training.frozen import build_scoring_engine, scoring_partition
from cai_dist.experience.sample_checks import kept_rows
from cai_dist.models.load import load_causal
from cai_dist.types import Generation, KeepRemote, MemoryPart, RankInfo, StepShard
from cai_dist.types.ragged import Array, Ragged
from cai_dist.workers.base import Worker
from cai_dist.workers.forward import batch_logprobs


class ReferenceWorker(Worker):
    """A frozen causal LM: whole in each worker, or spread over the group with `sharding` (ZeRO-3, no optimiser)."""

    def __init__(
        self,
        info: RankInfo,
        *,
        model: str,
        dtype: Dtype,
        head_dtype: HeadDtype = "model",
        layout: Layout = "packed",
        sharding: ShardingConfig | None = None,
        timeouts: TimeoutsConfig | None = None,
        threads: int = 1,
    ) -> None:
        super().__init__(info, threads=threads)
        timeout = (timeouts or TimeoutsConfig()).collective
        built = load_causal(model, dtype, layout, scoring_partition(info, sharding, dtype, timeout))
        if head_dtype == "fp32":
            built.use_full_head()
        self._engine = build_scoring_engine(built, info, sharding, dtype, timeout)

    def logprobs(self, shard: StepShard[Generation], temperature: float) -> KeepRemote[Array]:
        """Log-probabilities (nats) of the response tokens of each sample of this rank, in order; kept."""
        samples = [sample for part in shard.micro_batches for sample in part]
        return kept_rows(self.info.role, samples, self._rows(shard, temperature))

    def response_logprobs(self, shard: StepShard[Generation], temperature: float) -> list[float]:
        """Log-probability (nats) of each whole response."""
        found: list[float] = self._rows(shard, temperature).sums().tolist()
        return found

    def keep_on_device(self, parts: Collection[MemoryPart]) -> dict[MemoryPart, float]:
        """Keep exactly these parts of the memory on the device (`Worker.keep_on_device`)."""
        return self._engine.keep_on_device(parts)

    def _rows(self, shard: StepShard[Generation], temperature: float) -> Ragged:
        def rows(model: Model, items: Sequence[Generation]) -> tuple[TokenBatch, Tensor]:
            batch = sample_batch(items).to(self._engine.device)
            return batch.on_host, batch_logprobs(model, batch, temperature)

        return all_response_rows(self._engine.infer(shard.micro_batches, rows))
