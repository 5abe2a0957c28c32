"""Log-probabilities and entropies of tokens, indexed by the token that they are about.

`out[:, t]` belongs to `ids[:, t]` and is computed from `logits[:, t - 1]`; column 0 has no prediction and is 0.
All results are in float32 (float64 if the logits are), whatever the model computes in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cai_dist.losses.shapes import same_shape


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability (nats) of each token under softmax(logits / temperature).

    Args:
        logits: [B, T, V]; `logits[:, t]` predicts token t + 1.
        ids: [B, T] token ids.
        temperature: that of the sampler; above 0.

    Returns: [B, T], entry t = log p(ids[t] | ids[:t]), column 0 = 0.

    Raises: ValueError for a temperature that is not above 0 or shapes that do not fit.
    """
    if logits.shape[:-1] != ids.shape:
        raise ValueError(f"logits {list(logits.shape)} must be ids {list(ids.shape)} with a vocabulary axis")
    scaled = _next_token_logits(logits, temperature)
    # gather - logsumexp: the [B, T, V] log-softmax is never built.
    chosen = scaled.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    return _with_first_column(chosen - torch.logsumexp(scaled, dim=-1))


def entropy_from_logits(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy (nats) of the distribution that each token was drawn from, at the sampler's temperature.

    Args:
        logits: [B, T, V].
        temperature: that of the sampler; above 0.

    Returns: [B, T], entry t = H(p(. | ids[:t])), column 0 = 0.

    Raises: ValueError for a temperature that is not above 0.
    """
    scaled = _next_token_logits(logits, temperature)
    return _with_first_column(torch.special.entr(torch.softmax(scaled, dim=-1)).sum(-1))


def response_mask(prompt_lengths: Tensor, lengths: Tensor, T: int) -> Tensor:
    """True for prompt_length <= t < length. Depends on lengths alone: a padding id may be a real token.

    Args:
        prompt_lengths: [B] tokens of the prompt.
        lengths: [B] tokens of prompt and response.
        T: width of the padded batch.

    Returns: bool [B, T].
    """
    same_shape(prompt_lengths=prompt_lengths, lengths=lengths)
    position = torch.arange(T, device=lengths.device).unsqueeze(0)
    return (position >= prompt_lengths.unsqueeze(1)) & (position < lengths.unsqueeze(1))


def _next_token_logits(logits: Tensor, temperature: float) -> Tensor:
    """logits[:, :-1] / temperature in at least float32: [B, T - 1, V]."""
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0: a greedy choice has no log-probability")
    logits = logits[:, :-1]
    if logits.dtype != torch.float64:
        logits = logits.float()
    return logits if temperature == 1.0 else logits / temperature


def _with_first_column(values: Tensor) -> Tensor:
    """[B, T - 1] -> [B, T] with a column of zeros before."""
    return torch.nn.functional.pad(values, (1, 0))
