"""A causal language model behind the one forward signature that the engines know."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class CausalModel(nn.Module):
    """Wraps a Hugging Face causal LM. `hf` is the wrapped model, the one that is saved."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf = hf

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [B, T, V] for right-padded `ids` [B, T]; `logits[:, t]` is about token t + 1."""
        logits: Tensor = self.hf(input_ids=ids, attention_mask=attention_mask, use_cache=False).logits
        return logits
