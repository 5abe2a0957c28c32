"""A model's architecture in small: the same layers, a few of each kind and narrow, with random weights, on the CPU.

What an architecture cannot do (be packed, have a scalar head, be saved) shows on such a copy in a moment, before the
first stage, and without the weights being read. It is made from the configuration alone. What is kept: every kind of
layer that occurs, the size of a head, the number of experts, and everything else that is not a width. Where the layers
differ is seen on a copy without memory (device meta), so that no pattern (`layer_types`, `first_k_dense_replace`,
`attn_layer_period`, …) has to be known here: the copy has the first layers, up to the one that completes the kinds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from cai_dist.errors import ConfigError

VOCABULARY = 512
"""Rows of the embeddings of the copy, at most."""
LEAST_LAYERS = 2
_WIDE = 128
"""Width of the copy where it does not follow from the heads."""
_FEED = 256
"""Width of feed-forward layers and experts, at most."""
_ATTEMPTS = 3
"""Numbers of layers that are tried before the copy has all of them."""
_LARGEST = 2e8
"""Parameters of a copy, at most."""
_WIDTHS = (
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "shared_intermediate_size",
    "dense_intermediate_size",
    "intermediate_size_mlp",
    "expert_ffn_hidden_size",
    "ffn_hidden_size",
    "ffn_dim",
    "decoder_ffn_dim",
    "encoder_ffn_dim",
    "n_inner",
    "dff",
    "d_inner",
    "feed_forward_size",
    "lru_width",
    "attention_hidden_size",
    "attention_head_dim",
    "embedding_size",
    "word_embed_proj_dim",
)
"""Settings that grow with the width of the model, by the names that transformers' configurations have."""
_INDICES = ("moe_layers", "mlp_only_layers", "cross_attention_layers", "hybrid_layer_ids", "full_attn_idxs")
"""Settings that list numbers of layers."""
_NUMBERED = ("idx", "index", "layer_id", "layer_number")
"""In the names of what tells a layer its own number: no kind of layer."""


def shrunken_causal(config: Any, seed: int = 0) -> Any:
    """A transformers causal language model (float32, evaluation mode) like the one that `config` describes, in small.

    Its weights are wide enough that attention, positions and caps matter: what differs in the real model differs here.
    Raises ConfigError where no small copy of this architecture runs.
    """
    problem = ""
    for small in _candidates(config):
        try:
            if (size := _parameters(small)) > _LARGEST:
                raise ConfigError(f"with {size:.2g} parameters it is too large for a check")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                hf = AutoModelForCausalLM.from_config(small, dtype=torch.float32).eval()
                _draw_wide(hf)
            _run(hf)
            return hf
        except Exception as error:  # configurations and models refuse in their own ways
            problem = problem or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise ConfigError(f"no small copy of model type {config.model_type!r} runs ({problem})")


def shrunken_config(config: Any) -> Any:
    """The configuration of the small copy: narrow, with the first layers up to the one that completes the kinds."""
    return next(_candidates(config))


def layer_kinds(hf: Any) -> list[str]:
    """What each layer of a model is made of, in words that are equal exactly where two layers are alike."""
    count = hf.config.get_text_config().num_hidden_layers
    lists = [m for m in hf.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return ["\n".join(parts) for parts in zip(*([_kind(layer) for layer in found] for found in lists), strict=True)]


def _candidates(config: Any) -> Iterator[Any]:
    """Narrow and short; narrow, with all layers; short and as wide as the model itself, where that is not too large."""
    narrow = _small_vocabulary(copy.deepcopy(config))
    for part in _parts(narrow):
        _narrow(part, config)
    layers = _needed_layers(narrow)
    if layers is not None:
        yield _shorten(copy.deepcopy(narrow), layers)
    yield narrow
    yield _shorten(_small_vocabulary(copy.deepcopy(config)), layers or LEAST_LAYERS)


def _parts(config: Any) -> Iterator[Any]:
    """The configuration and those inside it (of the language model, of a vision tower, …)."""
    yield config
    for name in getattr(config, "sub_configs", {}):
        inside = getattr(config, name, None)
        if hasattr(inside, "to_dict"):
            yield from _parts(inside)


def _whole(config: Any, name: str) -> int | None:
    try:
        value = getattr(config, name, None)
    except Exception:  # a setting that differs from layer to layer is no number (Gemma 4)
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _small_vocabulary(config: Any) -> Any:
    """Fewer rows; ids of special tokens that then have none are moved to the last one. Weights are plain numbers."""
    for part in _parts(config):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
        for name in ("vocab_size", "vocab_size_per_layer_input"):
            if (size := _whole(part, name)) and size > VOCABULARY:
                setattr(part, name, VOCABULARY)
        for name, value in list(vars(part).items()):
            if name.endswith("token_id") and isinstance(value, int) and value >= VOCABULARY:
                setattr(part, name, VOCABULARY - 1)
            elif name.endswith("token_id") and isinstance(value, list):
                setattr(part, name, [min(i, VOCABULARY - 1) for i in value])
    return config


def _narrow(part: Any, whole: Any) -> None:
    """Fewer heads of the same size, and what follows from that. Nothing of a part without text (a vision tower)."""
    hidden = _whole(part, "hidden_size")
    if hidden is None or "vocab_size" not in part.to_dict():
        return
    heads, shared = _whole(part, "num_attention_heads"), _whole(part, "num_key_value_heads")
    width: int = _WIDE
    size = _whole(part, "head_dim") or (hidden // heads if heads else 0)
    if heads and 0 < size <= 256:
        fewer, groups = (2, 2) if shared in (None, heads) else (2, 1) if shared == 1 or size > 128 else (4, 2)
        width = fewer * size if hidden == heads * size else _WIDE
        if width >= hidden:
            return
        part.num_attention_heads = fewer
        for name in ("num_key_value_heads", "num_kv_heads"):
            if _whole(part, name) is not None:
                setattr(part, name, groups)
    width = _mamba_width(part, hidden, width)
    if width >= hidden:
        return
    for name in _WIDTHS:
        if value := _whole(part, name):
            setattr(part, name, _narrower(value, hidden, width))
        elif isinstance(sizes := getattr(part, name, None), list) and all(isinstance(x, int) for x in sizes):
            setattr(part, name, [_narrower(x, hidden, width) for x in sizes])  # one for each layer
    part.hidden_size = width
    for other in _parts(whole):
        if other is not part and _whole(other, "out_hidden_size") == hidden:
            other.out_hidden_size = width


def _narrower(size: int, hidden: int, width: int) -> int:
    """A setting of `size` beside `hidden`, as it should be beside `width`. One or two times `hidden` stays so: some
    architectures rely on it (Mamba's inner layers)."""
    scaled = size * width // hidden
    return scaled if size in (hidden, 2 * hidden) else max(8, min(_FEED, scaled // 8 * 8))


def _mamba_width(part: Any, hidden: int, width: int) -> int:
    """The width at which Mamba's heads come out even, their number set to it."""
    expand = _whole(part, "mamba_expand") or _whole(part, "expand")
    for count, size in (
        ("mamba_n_heads", "mamba_d_head"),
        ("num_heads", "head_dim"),
        ("n_mamba_heads", "mamba_headdim"),
    ):
        heads, each = _whole(part, count), _whole(part, size)
        if expand and heads and each and heads * each == expand * hidden:
            groups = next(
                (g for name in ("mamba_n_groups", "n_groups", "mamba_ngroups") if (g := _whole(part, name))), 1
            )
            step = math.lcm(groups * each, expand) // expand
            width = max(1, -(-width // step)) * step
            setattr(part, count, expand * width // each)
    return width


def _needed_layers(config: Any) -> int | None:
    """How many of the first layers have all kinds between them; None where that cannot be told, or it takes all."""
    total = _whole(config.get_text_config(), "num_hidden_layers")
    if total is None or total <= LEAST_LAYERS:
        return None
    try:
        with torch.device("meta"):
            kinds = layer_kinds(AutoModelForCausalLM.from_config(copy.deepcopy(config)))
        whole = [n for n in range(LEAST_LAYERS, total) if set(kinds[:n]) == set(kinds)]
        for layers in whole[:_ATTEMPTS]:
            with torch.device("meta"):
                short = AutoModelForCausalLM.from_config(_shorten(copy.deepcopy(config), layers))
            if set(layer_kinds(short)) == set(kinds):
                return layers
    except Exception:  # a model that does not come up without memory, or not with fewer layers
        return None
    return None


def _shorten(config: Any, layers: int) -> Any:
    """The first `layers` layers of the language model: lists with an entry for each are cut, lists of layers' numbers
    too. One layer of every other part, which nothing here looks at."""
    text = config.get_text_config()
    for part in _parts(config):
        for depth in ("num_hidden_layers", "num_layers", "depth"):
            total, kept = _whole(part, depth), layers if part is text or part is config else 1
            if total is None or total <= kept:
                continue
            setattr(part, depth, kept)
            for name, value in list(vars(part).items()):
                if name in _INDICES and isinstance(value, list):
                    setattr(part, name, [i for i in value if i < kept])
                elif isinstance(value, list) and len(value) == total:
                    setattr(part, name, value[:kept])
        if (shared := _whole(part, "num_kv_shared_layers")) and shared >= layers:
            part.num_kv_shared_layers = layers // 2
    return config


def _kind(layer: nn.Module) -> str:
    lines = []
    for name, module in layer.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, (bool, str, int, type(None))) and not any(word in key for word in _NUMBERED)
        }
        shapes = {key: tuple(p.shape) for key, p in module.named_parameters(recurse=False)}
        lines.append(f"{name} {type(module).__name__} {sorted(plain.items(), key=str)} {shapes}")
    return "\n".join(lines)


def _parameters(config: Any) -> float:
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in AutoModelForCausalLM.from_config(copy.deepcopy(config)).parameters())
    except Exception:  # then it does not come up with memory either, and says why there
        return 0.0


@torch.no_grad()
def _draw_wide(hf: Any) -> None:
    """Linear layers with outputs as large as their inputs, embeddings of size 1: transformers' own 0.02 would make
    attention even whatever its arguments are. Biases, gains and sinks move off 0 and 1, where nobody misses them."""
    for module in hf.modules():
        if isinstance(module, nn.Embedding):
            module.weight.normal_()
        elif isinstance(module, nn.Linear):
            module.weight.normal_(std=module.in_features**-0.5)
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)


@torch.no_grad()
def _run(hf: Any) -> Tensor:
    ids = torch.arange(1, 6) % hf.config.get_text_config().vocab_size
    logits: Tensor = hf(input_ids=ids[None], use_cache=False).logits
    if not logits.isfinite().all():
        raise ConfigError("its results are not finite")
    return logits
