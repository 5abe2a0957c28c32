"""Attention that swallows nothing: transformers' `sdpa` for the layers that ask for no more than it does, else `eager`.

An attention function takes whatever a layer passes and ignores what it does not know: under `sdpa` the soft cap of
Gemma 2 or the sinks of gpt-oss have no effect, and nobody says so. Here an unknown argument with a value is an error,
which sends the model to the `eager` attention of its own file, the one that defines what the model computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "cai_dist_exact"
"""Under which transformers knows the attention, with the masks of its `sdpa`."""
HONOURED = frozenset(
    {"dropout", "scaling", "is_causal", "position_bias", "enable_gqa"}  # arguments of `sdpa`
    | {"sliding_window", "position_ids", "cache_position"}  # in the mask and the queries already
    | {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}  # in the mask already; for flash attention
    | {"use_cache", "output_attentions", "output_hidden_states", "return_dict", "num_items_in_batch", "deterministic"}
)
"""What may be passed to torch's scaled-dot-product attention without a change of what it should compute."""


class SwallowedArgumentError(Exception):
    """An attention layer asks for something that the attention function would ignore."""


def refuse_swallowed(arguments: Mapping[str, Any], honoured: frozenset[str] = HONOURED) -> None:
    """Raises SwallowedArgumentError for an argument with a value that is not among the `honoured` ones."""
    for name, value in arguments.items():
        if value is not None and value is not False and name not in honoured:
            raise SwallowedArgumentError(name)


def exact_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of one layer in the form that transformers calls; see `sdpa_attention_forward`.

    Raises: SwallowedArgumentError for what that would ignore.
    """
    refuse_swallowed(kwargs)
    out: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return out


def exact_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask of transformers' `sdpa`. On a GPU it is made even where it hides nothing: transformers would look
    whether it does, and the host wait for the answer."""
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.is_cuda:
        kwargs |= {"allow_is_causal_skip": False}
    made: Tensor | None = sdpa_mask(*args, **kwargs)
    return made


def use_exact_attention(hf: Any, name: str = NAME) -> None:
    """Give `hf` the attention `name`, or `eager` where one of its layers asks for what that would ignore.

    A model that does not go by transformers' attention interface, or that is loaded with `eager`, stays as it is.
    """
    if hf.config._attn_implementation not in ("sdpa", NAME):
        return
    before = hf.config._attn_implementation
    hf.set_attn_implementation(name)
    if hf.config._attn_implementation != name:
        hf.set_attn_implementation(before)
        return
    try:
        with torch.no_grad():
            hf(input_ids=torch.ones(1, 2, dtype=torch.long, device=hf.device), use_cache=False)
    except SwallowedArgumentError:
        hf.set_attn_implementation("eager")


@contextmanager
def eagerly(hf: Any) -> Iterator[None]:
    """The model with the attention that its own file defines, while the block runs."""
    before = hf.config._attn_implementation
    hf.set_attn_implementation("eager")
    try:
        yield
    finally:
        hf.set_attn_implementation(before)


AttentionInterface.register(NAME, exact_attention)
AttentionMaskInterface.register(NAME, exact_mask)
