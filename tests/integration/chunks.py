"""A worker whose output layer takes 8 tokens at a time."""

from __future__ import annotations

from cai_dist.config.training import Dtype, Layout
from cai_dist.models.causal import CausalModel
from cai_dist.models.partition import Partition
from cai_dist.workers.language import LanguageWorker
from tests.tiny import VOCAB


class ChunkedWorker(LanguageWorker):
    """As its base, in small chunks."""

    def build(self, source: str, dtype: Dtype, seed: int, layout: Layout, partition: Partition | None) -> CausalModel:
        model = super().build(source, dtype, seed, layout, partition)
        model.hf.get_output_embeddings().max_logits = 8 * VOCAB
        return model
