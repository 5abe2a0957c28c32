"""A scalar per position on the trunk of a causal LM: preference, reward and value models.

It is a Hugging Face sequence-classification model with one label, so that what is saved (`model.*`, `score.weight`)
loads with `AutoModelForSequenceClassification`; only `forward` differs: it keeps every position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

HEAD_STD = 0.02


class ScalarHeadModel(nn.Module):
    """Wraps `AutoModelForSequenceClassification(num_labels=1)`. `hf` is the wrapped model, the one that is saved."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf = hf

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Head output [B, T] (float32) at every position of right-padded `ids` [B, T]."""
        trunk = getattr(self.hf, self.hf.base_model_prefix)
        hidden = trunk(input_ids=ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        out: Tensor = self.hf.score(hidden).squeeze(-1).float()
        return out


def seed_head(weight: Tensor, seed: int) -> None:
    """Fill the head [1, H] with a small normal draw that depends on `seed` alone."""
    draw = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    with torch.no_grad():
        weight.copy_(draw * HEAD_STD)
