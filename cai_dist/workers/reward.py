"""The reward model of PPO: the preference model being served."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from cai_dist.config.run import TimeoutsConfig
from cai_dist.config.training import Dtype, Layout, ShardingConfig
from cai_dist.data.batches import sample_batch
from cai_dist.data.device import brought_together
from cai_dist.data.thoughts import NO_THOUGHTS, ThoughtIds
from cai_dist.engines.protocols.training import Model
from cai_dist.engines.training.frozen import build_scoring_engine, scoring_partition
from cai_dist.models.load import load_scalar
from cai_dist.types import Generation, MemoryPart, RankInfo, StepShard
from cai_dist.workers.base import Worker
from cai_dist.workers.forward import last_token_scores


class RewardWorker(Worker):
    """A frozen scalar model. `end_id` is the token that closes an answer in the preference model's training data;
    `thoughts` are the marks of what a model may write before an answer, which is not scored. Whole in each worker, or
    spread over the group with `sharding` (ZeRO-3, no optimiser)."""

    def __init__(
        self,
        info: RankInfo,
        *,
        model: str,
        dtype: Dtype,
        end_id: int,
        thoughts: ThoughtIds = NO_THOUGHTS,
        layout: Layout = "packed",
        sharding: ShardingConfig | None = None,
        timeouts: TimeoutsConfig | None = None,
        threads: int = 1,
    ) -> None:
        super().__init__(info, threads=threads)
        self._end_id, self._thoughts = end_id, thoughts
        timeout = (timeouts or TimeoutsConfig()).collective
        built = load_scalar(model, dtype, 0, layout, scoring_partition(info, sharding, dtype, timeout))
        self._engine = build_scoring_engine(built, info, sharding, dtype, timeout)

    def scores(self, shard: StepShard[Generation]) -> list[float]:
        """Raw score (logits) of each sample of this rank, in order, read at the last token of prompt + response.

        A response without the end token (cut off, or stopped by another token) gets it first: the model has only seen
        answers that end with it, and none with thoughts before them: those before the last answer are cut off.
        """
        found = brought_together(self._engine.infer(shard.micro_batches, self._scores))
        return [score for part in found for score in part.tolist()]

    def keep_on_device(self, parts: Collection[MemoryPart]) -> dict[MemoryPart, float]:
        """Keep exactly these parts of the memory on the device (`Worker.keep_on_device`)."""
        return self._engine.keep_on_device(parts)

    def _scores(self, model: Model, items: Sequence[Generation]) -> Tensor:
        batch = sample_batch([self._closed(item) for item in items]).to(self._engine.device)
        return last_token_scores(model, batch)[: len(items)]

    def _closed(self, item: Generation) -> Generation:
        _, last = item.turns()[-1]
        before = item.response_ids[: len(item.response_ids) - len(last)]
        thoughts, _ = self._thoughts.split(last.tolist())
        answer = np.concatenate([before, last[len(thoughts) :]])
        if len(thoughts) == len(last) or answer[-1] != self._end_id:
            answer = np.append(answer, np.int32(self._end_id))
        return replace(item, response_ids=answer, loss_mask=np.zeros(0, bool))
