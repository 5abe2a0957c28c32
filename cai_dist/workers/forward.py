"""Forward passes that several roles share, on padded batches aligned as docs/architecture.md says."""

from __future__ import annotations

from torch import Tensor, nn

from cai_dist.data.batches import TokenBatch
from cai_dist.engines.train import Model
from cai_dist.losses.logprobs import token_logprobs


def batch_logprobs(model: Model, batch: TokenBatch, temperature: float) -> Tensor:
    """Log-probability (nats) [B, T] of each token of the batch."""
    return token_logprobs(model(batch.ids, batch.attention_mask), batch.ids, temperature)


def batch_values(model: Model, batch: TokenBatch) -> Tensor:
    """V [B, T] of the state before each token: the head at the token before; column 0 has none and is 0."""
    heads = model(batch.ids, batch.attention_mask)
    return nn.functional.pad(heads[:, :-1], (1, 0))


def last_token_scores(model: Model, batch: TokenBatch) -> Tensor:
    """Head output [B] at the last token of each sequence."""
    heads = model(batch.ids, batch.attention_mask)
    return heads.gather(1, (batch.lengths - 1).unsqueeze(1)).squeeze(1)
