"""How many floating-point operations a Llama-shaped model takes, by formula, and what the devices promise.

With N parameters in matrices that a token goes through, a forward pass takes 2 N for each token, and causal attention
2 L H n^2 for a sequence of n tokens: queries with keys and weights with values are 2 n^2 H each, half of which
causality leaves out; L layers, H = heads x head dimension. The backward pass takes twice the forward pass, so that
training is 6 N a token and 6 L H n^2 a sequence. What is computed again to save memory is not counted.

N leaves the embeddings out (a look-up) and counts the output layer at those tokens alone that need it: prompts do not
go through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "B200": 2250e12,
}
"""FLOP/s of bf16 matrix products without sparsity, by data sheet; the first name that is part of the device's own."""


@dataclass(frozen=True)
class Work:
    """What went through a model: sequences together `tokens` long, the sum of their squared lengths, and the tokens
    that the output layer saw."""

    tokens: int
    squares: int
    scored: int


def body_parameters(config: Any) -> int:
    """Elements of the matrices of all blocks."""
    inner = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    attention = config.hidden_size * (2 * inner + 2 * keys)
    return int(config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size))


def forward_flops(config: Any, work: Work) -> float:
    """Of one pass without gradients."""
    inner = config.num_attention_heads * config.head_dim
    matrices = body_parameters(config) * work.tokens + config.vocab_size * config.hidden_size * work.scored
    return 2.0 * matrices + 2.0 * config.num_hidden_layers * inner * work.squares


def training_flops(config: Any, work: Work) -> float:
    """Of a forward and a backward pass."""
    return 3.0 * forward_flops(config, work)


def peak(device: str, measured: float) -> tuple[float, str]:
    """FLOP/s that the device can do, and where the number is from."""
    for name, rate in PEAKS.items():
        if name in device:
            return rate, "data sheet"
    return measured, "measured matrix product"
