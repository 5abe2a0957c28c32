"""Log-probabilities and entropies of tokens straight from hidden states, without the whole [tokens, vocabulary] matrix.

With u = W h + b the output layer, logits are z = cap * tanh(scale * u / cap) (cap: none in most models, then z =
scale * u) and the distribution is softmax(z / T). With p its probabilities,

    log p_j = z_j/T - logsumexp(z/T)          d log p_t / d(z_j/T) = [j = t] - p_j
    H = -sum_j p_j log p_j                    d H       / d(z_j/T) = -p_j (log p_j + H)

Logits are worked in float32 (float64 if the hidden states are), whatever the model computes in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOGITS = 64 * 2**20
"""Elements of the largest [tokens, vocabulary] matrix that is ever made (256 MiB in float32). Tokens that need more go
in chunks, whose logits are computed a second time in the backward pass."""


@dataclass(frozen=True, slots=True)
class LogitScaling:
    """What a model does to its logits after the output layer."""

    scale: float = 1.0
    cap: float | None = None
    """Soft cap: logits become cap * tanh(logits / cap)."""


def hidden_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float = 1.0,
    *,
    scaling: LogitScaling | None = None,
    with_entropy: bool = False,
    max_logits: int = MAX_LOGITS,
) -> tuple[Tensor, Tensor]:
    """Log-probability (nats) of a token for each hidden state, and the entropy of the distribution that it is from.

    Args:
        hidden: [n, H], the state before each token.
        weight, bias: [V, H] and [V] of the output layer.
        targets: long [n], the tokens.
        temperature: that of the sampler; above 0.
        with_entropy: without it the entropies are 0.
        max_logits: elements of one chunk of logits.

    Returns: two tensors [n].

    Raises: ValueError for a temperature that is not above 0 or shapes that do not fit.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0: a greedy choice has no log-probability")
    if hidden.ndim != 2 or hidden.shape[:1] != targets.shape or hidden.shape[1] != weight.shape[1]:
        shapes = f"hidden {list(hidden.shape)}, weight {list(weight.shape)}, targets {list(targets.shape)}"
        raise ValueError(f"shapes must be [n, H], [V, H] and [n], got {shapes}")
    layer = _Layer(scaling or LogitScaling(), temperature, max(1, max_logits // weight.shape[0]))
    found: tuple[Tensor, Tensor] = _HiddenLogprobs.apply(hidden, weight, bias, targets, layer, with_entropy)
    return found


@dataclass(frozen=True, slots=True)
class _Layer:
    """How hidden states become log-probabilities over the vocabulary."""

    scaling: LogitScaling
    temperature: float
    rows: int
    """Tokens of one chunk."""

    def chunks(self, count: int) -> Iterator[slice]:
        """At least one, which may be empty: the weights take part in every pass."""
        return (slice(start, min(start + self.rows, count)) for start in range(0, max(count, 1), self.rows))

    def log_softmax(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[rows, V] log-probabilities and d(capped logits) / d(logits before the cap), None without a cap."""
        logits = F.linear(hidden, weight, bias)
        if logits.dtype != torch.float64:
            logits = logits.float()
        factor, slope, cap = self.scaling.scale / self.temperature, None, self.scaling.cap
        if cap is not None:
            shape = torch.tanh(logits * (self.scaling.scale / cap))
            logits, slope, factor = shape * cap, 1 - shape**2, 1 / self.temperature
        return torch.log_softmax(logits if factor == 1.0 else logits * factor, dim=-1), slope


class _HiddenLogprobs(torch.autograd.Function):
    """The closed form of the gradient: half the passes over memory that autograd needs for the same, and no graph to
    keep for chunks that are recomputed."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        layer: _Layer,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, table = [], [], None
        for part in layer.chunks(len(targets)):
            table, slope = layer.log_softmax(hidden[part], weight, bias)
            logprobs.append(table.gather(-1, targets[part, None]).squeeze(-1))
            entropies.append(_entropy(table) if with_entropy else torch.zeros_like(logprobs[-1]))
        # One chunk is kept for the backward pass; of several none is, nor is a capped one (its slope would be needed).
        kept = table if len(logprobs) == 1 and slope is None else None
        ctx.save_for_backward(hidden, weight, bias, targets, kept)
        ctx.layer = layer
        ctx.set_materialize_grads(False)
        if not with_entropy:
            entropy = torch.zeros_like(targets, dtype=logprobs[0].dtype)
            ctx.mark_non_differentiable(entropy)
            return torch.cat(logprobs), entropy
        return torch.cat(logprobs), torch.cat(entropies)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, kept = ctx.saved_tensors
        layer: _Layer = ctx.layer
        hidden_grad = torch.empty_like(hidden)
        weight_grad = bias_grad = None
        for part in layer.chunks(len(targets)):
            table, slope = (kept, None) if kept is not None else layer.log_softmax(hidden[part], weight, bias)
            grads = (None if grad is None else grad[part] for grad in (grad_logprobs, grad_entropy))
            grad = _logit_grad(table, targets[part], *grads)
            grad *= layer.scaling.scale / layer.temperature
            if slope is not None:
                grad *= slope
            if ctx.needs_input_grad[2]:
                bias_grad = grad.sum(0) if bias_grad is None else bias_grad + grad.sum(0)
            grad = grad.to(weight.dtype)
            hidden_grad[part] = grad @ weight
            if ctx.needs_input_grad[1]:
                # Sums over chunks in float32: in half precision each chunk would round.
                one = grad.t() @ hidden[part]
                weight_grad = one if weight_grad is None else weight_grad.to(table.dtype).add_(one)
        weight_grad = None if weight_grad is None else weight_grad.to(weight.dtype)
        bias_grad = None if bias_grad is None else bias_grad.to(bias.dtype)
        return hidden_grad, weight_grad, bias_grad, None, None, None


def _entropy(table: Tensor) -> Tensor:
    """[rows] from log-probabilities [rows, V]; a probability of 0 adds 0."""
    probabilities = table.exp()
    return -(probabilities.mul_(table.clamp_min(torch.finfo(table.dtype).min))).sum(-1)


def _logit_grad(table: Tensor, targets: Tensor, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> Tensor:
    """Gradient [rows, V] with respect to logits / temperature, from log-probabilities [rows, V]; see the head of this
    file."""
    grad = table.exp()
    if grad_entropy is not None:
        slope = table.clamp_min(torch.finfo(table.dtype).min) + _entropy(table).unsqueeze(-1)
        slope.mul_(grad_entropy.unsqueeze(-1))
        grad.mul_(slope if grad_logprobs is None else slope.add_(grad_logprobs.unsqueeze(-1))).neg_()
    elif grad_logprobs is not None:
        grad.mul_(-grad_logprobs.unsqueeze(-1))
    else:
        grad.zero_()
    if grad_logprobs is not None:
        grad.scatter_add_(-1, targets.unsqueeze(-1), grad_logprobs.unsqueeze(-1))
    return grad
