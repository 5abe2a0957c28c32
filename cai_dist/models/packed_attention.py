"""Causal attention over sequences that stand one after the other in one row, as transformers' attention function.

No mask is built and no sequence sees another. Where there is no kernel for ragged sequences (CPU; full precision),
sequences of like length are spread over a rectangle, one causal attention call runs on each and the results are
gathered back: keys on the right of a sequence's end are after all its queries, so causality alone hides them. On CUDA
in half precision torch's variable-length flash attention runs on the flat row as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from cai_dist.config.checks.sequence_parallel import heads_problem
from cai_dist.errors import ConfigError
from cai_dist.models.attention import HONOURED, SwallowedArgumentError, refuse_swallowed
from cai_dist.models.sequence_parallel import (
    SequenceGroup,
    all_tokens_of_some_heads,
    cannot_spread,
    own_tokens_of_all_heads,
    shared_heads,
)

NAME = "cai_dist_packed"
"""Under which transformers knows it. No mask function goes with it: transformers then builds no mask."""


ALIKE = 0.75
"""Sequences share a rectangle if they are at least this long in proportion to its width. Attention in a rectangle costs
rows x width^2 whatever is padding, so that one rectangle for all would cost several times as much on ragged text."""
SHORT = 32
"""Rectangles no wider than this take all that is shorter: a call of its own would cost more than the padding."""


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Some sequences of a row [N], padded to the longest of them."""

    spread: Tensor
    """long [rows * width]: which token stands at each place; places after the end repeat the last token."""
    width: int


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the sequences of a row [N] are; made once a forward pass, used by every layer."""

    rectangles: tuple[Rectangle, ...]
    gather: Tensor
    """long [N]: at which place of all the rectangles, one after the other, each token stands."""
    bounds: Tensor
    """int [B + 1]: where sequences begin; N at the end."""
    longest: int
    group: SequenceGroup | None = None
    """With whom the row is computed: then a layer's queries, keys and values are those of this rank's stretch of it."""

    @property
    def indices(self) -> list[Tensor]:
        """All of its tensors, as `at` takes them."""
        return [self.gather, self.bounds, *(one.spread for one in self.rectangles)]

    def at(self, indices: Sequence[Tensor]) -> Packing:
        """This packing with `indices` that are on another device."""
        gather, bounds, *spreads = indices
        rectangles = tuple(Rectangle(to, one.width) for to, one in zip(spreads, self.rectangles, strict=True))
        return replace(self, rectangles=rectangles, gather=gather, bounds=bounds)

    @classmethod
    def of(cls, lengths: Tensor, positions: Tensor, group: SequenceGroup | None = None) -> Packing:
        """The packing of sequences of `lengths` [B] whose tokens have `positions` [N]; on a GPU the host would wait for
        the lengths."""
        ends = lengths.cumsum(0)
        starts, sizes = ends - lengths, lengths.tolist()
        rectangles, first_place, used = [], [0] * len(sizes), 0
        for like in _alike(sizes):
            width, rows = sizes[like[0]], torch.tensor(like, device=lengths.device)
            inside = torch.arange(width, device=lengths.device).minimum((lengths[rows] - 1).unsqueeze(1))
            rectangles.append(Rectangle((starts[rows].unsqueeze(1) + inside).flatten(), width))
            for i in like:
                first_place[i], used = used, used + width
        first = torch.tensor(first_place, device=lengths.device)
        return cls(
            rectangles=tuple(rectangles),
            gather=torch.repeat_interleave(first, lengths, output_size=len(positions)) + positions,
            bounds=F.pad(ends, (1, 0)).int(),
            longest=max(sizes),
            group=group,
        )


def _alike(sizes: list[int]) -> list[list[int]]:
    """Indices of sequences of like length, the longest first in each group."""
    groups: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        width = sizes[groups[-1][0]] if groups else 0
        if groups and (sizes[i] >= ALIKE * width or width <= SHORT):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer in the form that transformers calls.

    Args:
        query: [1, heads, N, d]; with a group this rank's stretch of the row.
        key, value: [1, key-value heads, N, d].
        scaling: of the dot products; default 1 / sqrt(d).
        packing: passed through the model's forward.

    Returns: [1, N, heads, d] and no attention weights.

    Raises: ConfigError where the layer asks for more than causal softmax attention.
    """
    causal = kwargs.get("is_causal")
    if (
        packing is None
        or attention_mask is not None
        or not (getattr(module, "is_causal", True) and causal is not False)
    ):
        raise ConfigError(cannot_pack(module, "its attention does not take sequences in one row"))
    try:
        refuse_swallowed(kwargs, HONOURED - {"position_bias"})
    except SwallowedArgumentError as error:
        raise ConfigError(cannot_pack(module, f"its attention uses {error}")) from error
    window = kwargs.get("sliding_window")
    if window is not None and packing.longest > window:
        raise ConfigError(cannot_pack(module, f"{packing.longest} tokens, but its attention sees {window:g}"))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if packing.group is None:
        return _whole_row(q, k, v, packing, scaling, dropout).unsqueeze(0), None
    size = packing.group.size
    if problem := heads_problem(q.shape[1], k.shape[1], size):
        raise cannot_spread(module, size, problem)
    q, k, v = all_tokens_of_some_heads(packing.group, q, shared_heads(k, size), shared_heads(v, size))
    out = own_tokens_of_all_heads(packing.group, _whole_row(q, k, v, packing, scaling, dropout))
    return out.unsqueeze(0), None


def cannot_pack(model: Any, why: str) -> str:
    """The one line for a model that needs the other layout."""
    return f"models.layout=packed: {type(model).__name__} cannot be packed ({why}); set models.layout=padded"


def _whole_row(q: Tensor, k: Tensor, v: Tensor, packing: Packing, scaling: float | None, dropout: float) -> Tensor:
    """[N, heads, d] each (fewer heads in k and v) -> [N, heads, d]."""
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and not dropout:
        return _ragged(q, k, v, packing, scaling)
    return _spread(q, k, v, packing, scaling, dropout)


def _spread(q: Tensor, k: Tensor, v: Tensor, packing: Packing, scaling: float | None, dropout: float) -> Tensor:
    """The row in rectangles."""
    grouped, parts = q.shape[1] != k.shape[1], []
    for one in packing.rectangles:
        a, b, c = (x.index_select(0, one.spread).unflatten(0, (-1, one.width)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(
            a, b, c, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped
        )
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).index_select(0, packing.gather)


def _ragged(q: Tensor, k: Tensor, v: Tensor, packing: Packing, scaling: float | None) -> Tensor:
    """The same by the kernel for ragged sequences, CUDA only; it reads each key once for all heads that share it."""
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = packing.bounds, packing.longest
    more: dict[str, Any] = {}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in signature(varlen_attn).parameters:
            more = {"enable_gqa": True}
        else:  # older releases of torch: as many key heads as query heads
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=(-1, 0), **more)
    assert isinstance(out, Tensor)
    return out


AttentionInterface.register(NAME, packed_attention)
