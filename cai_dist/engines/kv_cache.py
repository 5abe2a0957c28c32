"""A key-value cache with room for the tokens to come, and the attention of one new token over it.

Transformers' own cache is copied whole for every token (concatenation), and its attention copies it once more where
several query heads share a key-value head. Both cost as much as half of the matrix products of a small model.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "cai_dist_decode"
"""Under which transformers knows the attention, with the masks of its `sdpa`."""


class RoomyLayer(DynamicLayer):
    """Keys and values [B, heads, T, d] of one layer: the first T columns of buffers with `room` more."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new columns behind the old ones; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        width = used + key_states.shape[-2]
        if not self._buffers or width > self._buffers[0].shape[-2]:
            self._grow(key_states, value_states, used, width + self._room)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., used:width, :] = states
        self.keys, self.values = (buffer[..., :width, :] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences, and their room."""
        if self._buffers:
            width = self.get_seq_length()
            self._buffers = [buffer[indices] for buffer in self._buffers]
            self.keys, self.values = (buffer[..., :width, :] for buffer in self._buffers)

    def _grow(self, key_states: Tensor, value_states: Tensor, used: int, width: int) -> None:
        grown = [x.new_empty(*x.shape[:-2], width, x.shape[-1]) for x in (key_states, value_states)]
        for new, old in zip(grown, self._buffers, strict=False):
            new[..., :used, :] = old[..., :used, :]
        self._buffers = grown


def roomy_cache(config: Any, room: int) -> DynamicCache:
    """An empty cache for a model of `config`. Layers that keep something else than all keys and values (a sliding
    window, a recurrent state) stay as transformers makes them."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def use_decode_attention(hf: Any) -> None:
    """Give a model the attention of this file, if it would use transformers' `sdpa`."""
    if hf.config._attn_implementation == "sdpa":
        hf.set_attn_implementation(NAME)


def decode_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of one layer in the form that transformers calls; see `sdpa_attention_forward`.

    With one new token and grouped heads, the query heads [B, heads, 1, d] that share a key-value head stand as rows
    [B, key-value heads, group, d] before it, and keys are read where they are.
    """
    groups = query.shape[1] // key.shape[1]
    shared = attention_mask is None or attention_mask.shape[1] == 1
    if query.shape[2] != 1 or groups == 1 or not shared or kwargs.get("position_bias") is not None:
        out: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out
    rows = query.squeeze(2).unflatten(1, (key.shape[1], groups))
    found = F.scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"))
    return found.flatten(1, 2).unsqueeze(1), None


AttentionInterface.register(NAME, decode_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
