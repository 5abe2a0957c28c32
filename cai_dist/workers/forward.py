"""Forward passes that several roles share, on flat batches aligned as docs/architecture.md says."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cai_dist.data.batches import TokenBatch
from cai_dist.data.device import brought_together
from cai_dist.engines.protocols.training import Model


def batch_logprobs(model: Model, batch: TokenBatch, temperature: float, wanted: Tensor | None = None) -> Tensor:
    """Log-probability (nats) [N] of the response tokens, or of the `wanted` ones (bool [N], on the host); 0
    elsewhere."""
    host = batch.on_host
    wanted = host.response_mask if wanted is None else wanted
    logprobs: Tensor = model(batch.ids, host.lengths, wanted, temperature, False)[0]
    return logprobs


def batch_logprobs_and_entropy(model: Model, batch: TokenBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N] of the response tokens and entropies [N] of what they are from (nats); 0 elsewhere."""
    host = batch.on_host
    found: tuple[Tensor, Tensor] = model(batch.ids, host.lengths, host.response_mask, temperature, True)
    return found


def batch_values(model: Model, batch: TokenBatch) -> Tensor:
    """V [N] of the state before each token: the head at the token before; 0 at the first token of a sequence."""
    return values_and_last(model, batch)[0]


def values_and_last(model: Model, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Values like `batch_values`, and V [B] of the state after the last token of each sequence."""
    heads: Tensor = model(batch.ids, batch.on_host.lengths)
    before = nn.functional.pad(heads[:-1], (1, 0)).masked_fill(batch.positions == 0, 0.0)
    return before, heads[batch.last]


def last_token_scores(model: Model, batch: TokenBatch) -> Tensor:
    """Head output [B] at the last token of each sequence."""
    heads: Tensor = model(batch.ids, batch.on_host.lengths)
    return heads[batch.last]


def pairs_of(parts: Sequence[Tensor]) -> list[tuple[float, float]]:
    """Two numbers a pair from the tensors [pairs, 2] of all micro-batches; the host waits once."""
    return [(a, b) for part in brought_together(parts) for a, b in part.view(-1, 2).tolist()]
