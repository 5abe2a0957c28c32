"""Drawing tokens: temperature, nucleus and the log-probability of what was drawn."""

from __future__ import annotations

import torch
from torch import Tensor


def sampling_logprobs(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Log-probabilities [B, V] (float32, nats) of the distribution that tokens are drawn from.

    softmax(logits / temperature), cut to its nucleus: the most likely tokens up to and including the one that brings
    their sum to `top_p`, renormalised; the others get -inf. Temperature 0 is the point mass on the argmax (the first
    of equals), whose log-probability is 0.
    """
    logits = logits.float()
    if temperature == 0:
        point = torch.full_like(logits, -torch.inf)
        return point.scatter_(-1, logits.argmax(-1, keepdim=True), 0.0)
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    if top_p >= 1:
        return logprobs
    ranked, order = torch.sort(logprobs, dim=-1, descending=True, stable=True)
    before = ranked.exp().cumsum(-1) - ranked.exp()
    ranked = ranked.masked_fill(before >= top_p, -torch.inf)
    cut = torch.empty_like(ranked).scatter_(-1, order, ranked)
    return cut - torch.logsumexp(cut, dim=-1, keepdim=True)


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens [B] by inverting the distribution function at `uniforms` [B] in [0, 1).

    In float64, so that a token of probability 0 is never drawn.
    """
    cumulative = logprobs.double().exp().cumsum(-1)
    target = uniforms.double().unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def request_uniforms(seed: int, prompts: int, tokens: int) -> Tensor:
    """Uniform numbers [prompts, tokens]: row i drives prompt i alone, however the request is cut into batches."""
    return torch.rand(prompts, tokens, generator=torch.Generator().manual_seed(seed))
