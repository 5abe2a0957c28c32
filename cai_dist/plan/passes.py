"""What a pass through a model takes while it runs, in bytes: activations, logits, keys and values.

Counted on the modules as transformers 5 runs them in the packed layout. For every token a layer keeps for the backward
pass, with width h, all query heads together q, key-value heads k, MLP width f and b bytes an element:

    two norms      input and normalised input each, in fp32, and the output: 6 h b; in bf16 2 h (4 + 2 + 2)
    attention      queries, output of the kernel and of the gather: 3 q b; keys and values: 2 k b
    MLP            gate, up, activation and product: 4 f b (a plain MLP: 2 f b)

All of it stays until the layer's backward pass. With gradient checkpointing a layer keeps its input alone, h b, and all
else of one layer at a time is there while that layer is computed again. Of N ranks that compute a row together each has
1 / N of the tokens, in attention all of them for 1 / N of the heads: the same again.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai_dist.plan.shapes import Shape

MAX_LOGITS = 64 * 2**20
"""Elements of the largest chunk of logits, as `losses.logprobs.MAX_LOGITS`."""
ROOM = 128
"""Columns that the key-value cache is made longer, as `continuous_batching.ROOM`."""
PREFILL_TOKENS = 8192
"""Rows x columns of a pass over prompts, as `prefill_batches.PREFILL_TOKENS`."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of one sequence: all of it, and the part whose log-probabilities are wanted."""

    sequence: int
    wanted: int


def kept_activations(shape: Shape, item: int, tokens: int, checkpointed: bool = False) -> int:
    """Bytes that a forward pass over `tokens` tokens keeps for its backward pass, or what there is of them at a time
    where they are computed again."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 6 * shape.hidden * 4 if item == 4 else 2 * shape.hidden * 8
    mlp = (4 if shape.gated else 2) * shape.intermediate
    layer = norms + item * (3 * queries + 2 * keys + mlp)
    last = norms // 2
    if checkpointed:
        return tokens * (shape.layers * item * shape.hidden + layer + last)
    return tokens * (shape.layers * layer + last)


def passing_activations(shape: Shape, item: int, tokens: int) -> int:
    """Bytes of a forward pass that keeps nothing: the widest moment of one layer (residual, gate, up and product; or
    the same with queries, keys and values)."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    wide = max(3 * shape.intermediate, 3 * queries + 4 * keys)
    return tokens * (item * (2 * shape.hidden + wide) + 4 * shape.hidden)


def logits(shape: Shape, item: int, rows: int, scaled: bool, training: bool) -> int:
    """Bytes of the logits of one chunk: as the layer gives them, in fp32 and normalised; `scaled`: divided by a
    temperature into a tensor more. In the backward pass the normalised ones and their gradient, too.

    Up to 64 Mi logits are kept from the forward to the backward pass, of more only one chunk is there at a time.
    """
    chunk = min(rows * shape.vocab, max(MAX_LOGITS, shape.vocab))
    forward = 4 + (0 if item == 4 else item + 4) + 4 * int(scaled) + (4 if item == 4 else 0)
    backward = 4 + 4 + (item if item == 2 else 0)
    return chunk * (max(forward, backward) if training else forward)


@dataclass(frozen=True)
class Serving:
    """What an engine has room for: `rows` sequences of `prompt` and at most `new` tokens."""

    rows: int
    prompt: int
    new: int

    @property
    def columns(self) -> int:
        """Columns of the key-value cache at its widest."""
        return self.prompt + self.new + min(ROOM, self.new)


def kv_cache(shape: Shape, item: int, serving: Serving) -> int:
    """Bytes of keys and values; a layer that moves into a longer buffer has both for a moment."""
    whole = item * shape.kv_elements * serving.rows * serving.columns
    return whole + whole // shape.layers


def decoding(shape: Shape, item: int, serving: Serving) -> int:
    """Bytes of the widest pass: over prompts (with the keys and values that are then copied) or over one token of all
    sequences with its logits, in fp32 and as probabilities."""
    prefill = min(PREFILL_TOKENS, serving.rows * serving.prompt)
    prompts = passing_activations(shape, item, prefill) + item * shape.kv_elements * prefill
    one = passing_activations(shape, item, serving.rows) + 12 * serving.rows * shape.vocab
    return max(prompts, one)
