"""How flat sequences go through the trunk of a Hugging Face model: packed in one row, or padded to a rectangle.

Not every architecture can be packed: some mix tokens outside attention, or have attention of their own. So what a model
computes is compared at loading, on two short sequences, with what transformers computes for each alone with `eager`
attention.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from cai_dist.config.training import Layout
from cai_dist.data.batches import sequence_positions
from cai_dist.data.device import moved_together
from cai_dist.errors import ConfigError
from cai_dist.models.attention import eagerly, use_exact_attention
from cai_dist.models.compare import close, one_line, probe_sequences, runs_plainly
from cai_dist.models.packed_attention import NAME, Packing, cannot_pack
from cai_dist.models.sequence_parallel import Stretch


def trunk_of(hf: Any) -> Any:
    """The language model without its head. Raises ConfigError where it has none that can be called by itself."""
    trunk = hf.get_decoder()
    if trunk is not hf and isinstance(trunk, PreTrainedModel):
        return trunk
    # Transformers looks for some by an attribute that they do not have (Llama 4's text model), or that is the head.
    trunk = next((part for part in hf.children() if isinstance(part, PreTrainedModel)), None)
    if trunk is None:
        raise ConfigError(f"{type(hf).__name__} has no trunk that can be called without its head: take another model")
    return trunk


def trunk_states(hf: Any, ids: Tensor, lengths: Tensor, layout: Layout, stretch: Stretch | None = None) -> Tensor:
    """Last hidden states [N, H] of flat `ids` [N] in sequences of `lengths` [B]. Where lengths are on the host, it does
    not wait for the device of the ids. With a `stretch` of a packed row: those of its tokens alone, [width, H].

    Raises: ConfigError for a packed sequence that is longer than the window of the model's attention.
    """
    lengths = lengths.cpu()
    if layout == "packed":
        stretch = stretch or Stretch(len(ids))
        if stretch.filling:  # with a sequence more, which nobody looks at
            lengths, ids = F.pad(lengths, (0, 1), value=stretch.filling), F.pad(ids, (0, stretch.filling))
        positions = sequence_positions(lengths, len(ids))
        packing = Packing.of(lengths, positions, stretch.group)
        if packing.longest > (window := attention_window(hf.config)):
            raise ConfigError(cannot_pack(hf, f"{packing.longest} tokens, but its attention sees {window:g}"))
        positions, *indices = moved_together([positions, *packing.indices], ids.device)
        packing = packing.at(indices)
        ids, positions = stretch.part(ids).unsqueeze(0), stretch.part(positions).unsqueeze(0)
        packed = trunk_of(hf)(input_ids=ids, position_ids=positions, use_cache=False, packing=packing)
        states: Tensor = packed.last_hidden_state[0]
        return states
    inside = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    mask, places = moved_together([inside.long(), inside.flatten().nonzero().squeeze(-1)], ids.device)
    rows = torch.zeros(mask.numel(), dtype=ids.dtype, device=ids.device).index_copy(0, places, ids).view(mask.shape)
    # Without a mask a GPU has faster kernels; elsewhere transformers sees by itself that this one hides nothing.
    needed = mask if ids.device.type != "cuda" or len(places) < mask.numel() else None
    padded = trunk_of(hf)(input_ids=rows, attention_mask=needed, use_cache=False)
    return padded.last_hidden_state.flatten(0, 1).index_select(0, places)


def predicted_rows(lengths: Tensor, wanted: Tensor, device: torch.device, stretch: Stretch | None = None) -> Tensor:
    """long [n] on `device`: the `wanted` tokens (bool [N]) of sequences of `lengths` [B] that have a prediction, so not
    the first of a sequence; with a `stretch`, those that it predicts. Where both are on the host, nobody waits for the
    device."""
    after = sequence_positions(lengths.cpu(), len(wanted)) > 0
    rows = (stretch or Stretch(len(wanted))).predicts(wanted.cpu() & after)
    return moved_together([rows.nonzero().squeeze(-1)], device)[0]


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


def use_layout(hf: Any, layout: Layout, like: Any = None) -> None:
    """Make `hf` ready for `trunk_states` with this layout, and compare what that gives with each sequence alone.

    With `like`, a small copy of the architecture that has been through this, nothing is run: `hf` gets its attention.

    Raises: ConfigError for a model that gives something else; it names the model and what to do.
    """
    if like is not None:
        hf.set_attn_implementation(like.config._attn_implementation)
        return
    refusal = cannot_pack if layout == "packed" else cannot_pad
    with eagerly(hf), runs_plainly(hf):
        expected = _alone(hf)
    if layout == "packed":
        hf.set_attn_implementation(NAME)
        if hf.config._attn_implementation != NAME:
            raise ConfigError(cannot_pack(hf, "it does not use transformers' attention interface"))
    sequences = probe_sequences(hf)
    lengths = torch.tensor([len(ids) for ids in sequences], device=hf.device)
    try:
        if layout == "padded":
            use_exact_attention(hf)
        with torch.no_grad():
            found = trunk_states(hf, torch.cat(sequences), lengths, layout)
    except ConfigError:
        raise
    except Exception as error:  # an architecture may refuse a position or an argument in its own way
        raise ConfigError(refusal(hf, one_line(error))) from error
    if not close(hf, found, expected):
        raise ConfigError(refusal(hf, "its results are then others"))


def cannot_pad(model: Any, why: str) -> str:
    """The one line for a model to which no layout is left."""
    return f"models.layout=padded: {type(model).__name__} cannot be padded ({why}); take another model"


@torch.no_grad()
def _alone(hf: Any) -> Tensor:
    """What transformers computes for each sequence of the check by itself, one after the other."""
    sequences = probe_sequences(hf)
    return torch.cat([trunk_of(hf)(input_ids=ids[None], use_cache=False).last_hidden_state[0] for ids in sequences])
