"""How flat sequences go through the trunk of a Hugging Face model: packed in one row, or padded to a rectangle.

Not every architecture can be packed: some mix tokens outside attention, or have attention of their own. So what a model
computes is compared at loading, on two short sequences, with what transformers computes for each alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cai_dist.config.training import Layout
from cai_dist.data.batches import sequence_positions
from cai_dist.errors import ConfigError
from cai_dist.models.packed_attention import NAME, Packing, cannot_pack

_PROBE = (5, 3)
"""Lengths of the sequences of the check."""
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest difference that is rounding, relative to the largest number. Architectures that do not fit miss it widely."""


def trunk_of(hf: Any) -> Any:
    """The model without its head."""
    return getattr(hf, hf.base_model_prefix)


def trunk_states(hf: Any, ids: Tensor, lengths: Tensor, layout: Layout) -> Tensor:
    """Last hidden states [N, H] of flat `ids` [N].

    Raises: ConfigError for a packed sequence that is longer than the window of the model's attention.
    """
    if layout == "packed":
        positions = sequence_positions(lengths, len(ids))
        packing = Packing.of(lengths, positions)
        if packing.longest > (window := attention_window(hf.config)):
            raise ConfigError(cannot_pack(hf, f"{packing.longest} tokens, but its attention sees {window:g}"))
        packed = trunk_of(hf)(
            input_ids=ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False, packing=packing
        )
        states: Tensor = packed.last_hidden_state[0]
        return states
    inside = torch.arange(int(lengths.max()), device=ids.device) < lengths.unsqueeze(1)
    rows = torch.zeros(inside.shape, dtype=ids.dtype, device=ids.device).masked_scatter(inside, ids)
    padded = trunk_of(hf)(input_ids=rows, attention_mask=inside.long(), use_cache=False)
    states = padded.last_hidden_state[inside]
    return states


def attention_window(config: Any) -> float:
    """How many tokens back the narrowest attention layer sees; infinite where the configuration names no limit.

    A model of several parts (text and vision) has the settings of its language model in a configuration of their own.
    """
    limits = []
    for part in (config, config.get_text_config()):
        limits.append(getattr(part, "attention_chunk_size", None))
        if getattr(part, "use_sliding_window", True):
            limits.append(getattr(part, "sliding_window", None))
    return min((float(limit) for limit in limits if limit), default=float("inf"))


def use_layout(hf: Any, layout: Layout) -> None:
    """Make `hf` ready for `trunk_states` with this layout. Raises ConfigError for a model that cannot be packed."""
    if layout == "padded":
        return
    expected = _alone(hf)
    hf.set_attn_implementation(NAME)
    if hf.config._attn_implementation != NAME:
        raise ConfigError(cannot_pack(hf, "it does not use transformers' attention interface"))
    try:
        with torch.no_grad():
            found = trunk_states(hf, *_probe(hf), layout)
    except ConfigError:
        raise
    except Exception as error:  # an architecture may refuse a position or an argument in its own way
        line = " ".join(str(error).split())[:200]
        raise ConfigError(cannot_pack(hf, f"{type(error).__name__}: {line}")) from error
    if not close(found, expected):
        raise ConfigError(cannot_pack(hf, "its results are then others"))


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two results of a model in its own precision differ by rounding alone."""
    tolerance = _TOLERANCE.get(expected.dtype, 1e-3)
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _probe(hf: Any) -> tuple[Tensor, Tensor]:
    """Flat ids and lengths of two sequences that share no token where the vocabulary allows it."""
    ids = torch.arange(1, 1 + sum(_PROBE), device=hf.device) % hf.config.get_text_config().vocab_size
    return ids, torch.tensor(_PROBE, device=hf.device)


@torch.no_grad()
def _alone(hf: Any) -> Tensor:
    """What transformers computes for each sequence of the check by itself, one after the other."""
    ids, lengths = _probe(hf)
    parts = ids.split(lengths.tolist())
    return torch.cat([trunk_of(hf)(input_ids=part[None], use_cache=False).last_hidden_state[0] for part in parts])
