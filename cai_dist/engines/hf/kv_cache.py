"""A key-value cache with room for tokens and sequences to come, and the attention of one new token over it.

Transformers' own cache is copied whole for every token (concatenation), and its attention copies it once more where
several query heads share a key-value head. Both cost as much as half of the matrix products of a small model. And its
rows are of one batch; here a sequence can take the place of one that has ended.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cai_dist.models.attention import exact_mask, refuse_swallowed, use_exact_attention

NAME = "cai_dist_decode"
"""Under which transformers knows the attention, with the masks of its `sdpa`."""


class RoomyLayer(DynamicLayer):
    """Keys and values [B, heads, T, d] of one layer: T columns in the middle of buffers, with `room` more behind.

    Columns that no sequence needs any more are dropped from the front without a copy; when the buffers are full, what
    is left moves to the front of new ones.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._start = 0
        self._buffers: list[Tensor] = []

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Empty keys and values; those of `DynamicLayer` would be copies to the device."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states.new_empty(0), value_states.new_empty(0)
        self.is_initialized = True

    @property
    def allocated(self) -> tuple[int, int]:
        """Rows and columns of the buffers."""
        return (self._buffers[0].shape[0], self._buffers[0].shape[2]) if self._buffers else (0, 0)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new columns behind the old ones; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used, new = self.get_seq_length(), key_states.shape[-2]
        if not self._buffers or self._start + used + new > self._buffers[0].shape[-2]:
            self._move((key_states, value_states), key_states.shape[0], used, used + new + self._room)
        end = self._start + used
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., end : end + new, :] = states
        self._show(used + new)
        return self.keys, self.values  # type: ignore[return-value]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these sequences, and their room."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, in that order, like `reorder_cache`."""
        if self._buffers:
            width = self.get_seq_length()
            self._buffers = [buffer[indices] for buffer in self._buffers]
            self._show(width)

    def sequences(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """A copy of the keys and values of these sequences."""
        return self.keys[indices], self.values[indices]  # type: ignore[index]

    def drop_columns(self, count: int) -> None:
        """Forget the first `count` columns of all sequences."""
        width = self.get_seq_length()
        self._start += count
        self._show(width - count)

    def place(self, keys: Tensor, values: Tensor, rows: Tensor, height: int, width: int) -> None:
        """Put sequences [n, heads, w, d] into `rows` [n], their last column in the last one of the cache.

        An empty cache gets `width` columns; one of fewer than `height` rows gets that many. What is left of the
        sequences is zero: it is masked, but attention multiplies it by its weight of zero, and what stood there may not
        be a number.
        """
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        width = self.get_seq_length() or width
        if height > self.allocated[0]:
            self._move((keys, values), height, self.get_seq_length(), width + self._room)
        end = self._start + width
        for buffer, states in zip(self._buffers, (keys, values), strict=True):
            first = end - states.shape[-2]
            buffer[rows, :, self._start : first] = 0
            buffer[rows, :, first:end] = states
        self._show(width)

    def _move(self, like: tuple[Tensor, Tensor], height: int, used: int, width: int) -> None:
        """Into buffers of `height` rows and `width` columns; new rows are zero. `_show` comes next."""
        old, start = self._buffers, self._start
        self._buffers, self._start = [], 0
        self.keys = self.values = None  # so that the old keys are gone before the new values come
        for states in like:
            shape = (height, states.shape[1], width, states.shape[-1])
            before = old.pop(0) if old else states[:0]
            buffer = states.new_zeros(shape) if height > before.shape[0] else states.new_empty(shape)
            buffer[: before.shape[0], :, :used] = before[:, :, start : start + used]
            self._buffers.append(buffer)

    def _show(self, width: int) -> None:
        self.keys, self.values = (buffer[..., self._start : self._start + width, :] for buffer in self._buffers)


def roomy_cache(config: Any, room: int) -> DynamicCache:
    """An empty cache for a model of `config`. Layers that keep something else than all keys and values (a sliding
    window, a recurrent state) stay as transformers makes them."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def roomy_layers(cache: DynamicCache) -> list[RoomyLayer]:
    """The layers of a cache in which sequences can replace each other; none if one of its layers is of another kind."""
    layers = [layer for layer in cache.layers if isinstance(layer, RoomyLayer)]
    return layers if len(layers) == len(cache.layers) else []


def keep_sequences(cache: DynamicCache, rows: Tensor) -> None:
    """Keep these sequences [n] in all that a cache holds of them.

    Transformers' `batch_select_indices` would not do: layers with a state lack it, or keep the states of all sequences.
    """
    cache.reorder_cache(rows)  # type: ignore[arg-type]  # annotated as an old class of tensors


def use_decode_attention(hf: Any) -> None:
    """Give a model that would use transformers' `sdpa` the attention of this file, or `eager` where `sdpa` would ignore
    what one of its layers asks for."""
    use_exact_attention(hf, NAME)


def decode_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of one layer in the form that transformers calls; see `sdpa_attention_forward`.

    With one new token and grouped heads, the query heads [B, heads, 1, d] that share a key-value head stand as rows
    [B, key-value heads, group, d] before it, and keys are read where they are.

    Raises: SwallowedArgumentError for an argument that would be ignored.
    """
    refuse_swallowed(kwargs)
    groups = query.shape[1] // key.shape[1]
    shared = attention_mask is None or attention_mask.shape[1] == 1
    if query.shape[2] != 1 or groups == 1 or not shared or kwargs.get("position_bias") is not None:
        out: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out
    rows = query.squeeze(2).unflatten(1, (key.shape[1], groups))
    found = F.scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"))
    return found.flatten(1, 2).unsqueeze(1), None


AttentionInterface.register(NAME, decode_attention)
AttentionMaskInterface.register(NAME, exact_mask)
