"""A scalar per token on the trunk of a causal LM: preference, reward and value models.

It is a Hugging Face sequence-classification model with one label, so that what is saved (`model.*`, `score.weight`)
loads with `AutoModelForSequenceClassification`; only `forward` differs: it keeps every token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cai_dist.config.training import Layout
from cai_dist.models.layout import trunk_states, use_layout

HEAD_STD = 0.02


class ScalarHeadModel(nn.Module):
    """Wraps `AutoModelForSequenceClassification(num_labels=1)`. `hf` is the wrapped model, the one that is saved.

    Raises: ConfigError for an architecture that this layout does not fit.
    """

    def __init__(self, hf: Any, layout: Layout = "packed") -> None:
        super().__init__()
        self.hf, self.layout = hf, layout
        use_layout(hf, layout)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Head output [N] (float32) at every token of `ids` [N], sequences of `lengths` [B] one after the other."""
        states = trunk_states(self.hf, ids, lengths, self.layout)
        out: Tensor = self.hf.score(states).squeeze(-1).float()
        return out


def seed_head(weight: Tensor, seed: int) -> None:
    """Fill the head [1, H] with a small normal draw that depends on `seed` alone."""
    draw = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    with torch.no_grad():
        weight.copy_(draw * HEAD_STD)
