"""Drawing tokens: temperature, nucleus and the log-probability of what was drawn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256
"""Tokens that `draw` sums before it looks at any."""
_PASSED = 2**18
"""Numbers that are drawn at once where they are not used."""
_LAST: dict[tuple[int, int], tuple[torch.Generator, int]] = {}
"""The generator of the last request, by (seed, tokens), and the row whose numbers it would draw next."""


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

    In two steps, the block of the vocabulary and the token in it, so that sums over whole blocks do for most of it.
    Summed in float64, so that a token of probability 0 is never drawn.
    """
    padded = F.pad(logprobs, (0, -logprobs.shape[-1] % BLOCK), value=-torch.inf)
    blocks = padded.exp().unflatten(-1, (-1, BLOCK))
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniforms.double().unsqueeze(-1) * ends[:, -1:]
    block = _first_above(ends, target)
    before = F.pad(ends, (1, 0)).gather(-1, block)
    chosen = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1)
    inside = _first_above(chosen.double().cumsum(-1), target - before)
    return (block * BLOCK + inside).squeeze(-1)


def _first_above(ends: Tensor, target: Tensor) -> Tensor:
    """Where `ends` [B, n], rising, is first above `target` [B, 1]; where it never is (sums in another order round
    otherwise), the place where it reaches its end."""
    return torch.searchsorted(ends, target.minimum(_just_below(ends[:, -1:])), right=True)


def _just_below(numbers: Tensor) -> Tensor:
    return torch.nextafter(numbers, torch.zeros_like(numbers))


def request_uniforms(seed: int, prompts: int, tokens: int, first: int = 0) -> Tensor:
    """Uniform numbers [prompts, tokens]: row i drives prompt `first` + i of the call alone, however that is cut into
    requests and these into batches.

    The rows before `first` are passed over in blocks, and only those that the last request of the same call has not
    passed: a worker's requests of a call come in rising order as a rule.
    """
    generator, row = _LAST.pop((seed, tokens), (None, 0))
    if generator is None or row > first:
        generator, row = torch.Generator().manual_seed(seed), 0
    passed = torch.empty(min(_PASSED, (first - row) * tokens))
    for start in range(0, (first - row) * tokens, _PASSED):
        passed[: (first - row) * tokens - start].uniform_(generator=generator)
    found = torch.rand(prompts, tokens, generator=generator)
    _LAST.clear()
    _LAST[seed, tokens] = generator, first + prompts
    return found
