"""The shape of a decoder model: what its parameters, activations and caches follow from. No weights are looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai_dist.errors import ConfigError


@dataclass(frozen=True)
class Experts:
    """The mixture that stands in the place of the MLP: `count` gated MLPs of inner size `size`, of which a token goes
    through `active`, and one of size `shared` for all of them (0: none; `gate`: weighed by a vector of its own).
    `dense`: layers that have the plain MLP all the same."""

    count: int
    active: int
    size: int
    shared: int = 0
    gate: bool = False
    dense: int = 0


@dataclass(frozen=True)
class Shape:
    """A Llama-like decoder: grouped attention, a gated or plain MLP or a mixture of experts, norms with one weight
    vector each.

    `biases`: elements of all biases of one layer, and of norms beside the two of every layer.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    gated: bool = True
    biases: int = 0
    experts: Experts | None = None

    @property
    def attention(self) -> int:
        """Elements of the four projections of one layer: q and o [heads d, h], k and v [kv heads d, h]."""
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)

    @property
    def mlp(self) -> int:
        """Elements of the plain MLP of one layer."""
        return (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def mlps(self) -> int:
        """Elements of the MLPs of all layers, of mixtures all experts and the router."""
        return self._mlps(self.experts.count if self.experts else 0)

    def _mlps(self, experts: int) -> int:
        one = self.experts
        if one is None:
            return self.layers * self.mlp
        routed = self.hidden * one.count + (self.hidden if one.gate else 0)
        return one.dense * self.mlp + (self.layers - one.dense) * (
            3 * self.hidden * (experts * one.size + one.shared) + routed
        )

    @property
    def width(self) -> int:
        """Inner size of the MLP of one layer, as one token goes through it."""
        one = self.experts
        return self.intermediate if one is None else one.active * one.size + one.shared

    @property
    def embedding(self) -> int:
        """Elements of the input embedding, as many as of an output layer."""
        return self.vocab * self.hidden

    @property
    def trunk(self) -> int:
        """Elements without an output layer: embedding, layers, last norm."""
        rest = self.attention + 2 * self.hidden + self.biases
        return self.embedding + self.layers * rest + self.mlps + self.hidden

    @property
    def parameters(self) -> int:
        """Elements of the causal language model; a tied output layer counts once."""
        return self.trunk + (0 if self.tied else self.embedding)

    @property
    def scalar_parameters(self) -> int:
        """Elements of the preference, reward or value model: the trunk and a head [1, h]."""
        return self.trunk + self.hidden

    @property
    def matrices(self) -> int:
        """Elements of the layers' matrices."""
        return self.layers * self.attention + self.mlps

    @property
    def multiplied(self) -> int:
        """Elements of the layers' matrices that one token is multiplied with."""
        return self.layers * self.attention + self._mlps(self.experts.active if self.experts else 0)

    @property
    def kv_elements(self) -> int:
        """Elements of keys and values of one token, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def largest(self) -> int:
        """Elements of the largest single tensor; transformers keeps the experts of a layer as one."""
        fused = 2 * self.experts.count * self.hidden * self.experts.size if self.experts else 0
        return max(self.embedding, self.hidden * self.intermediate, fused)


PRESETS: Mapping[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("smollm2-135m", 576, 30, 9, 3, 64, 1536, 49_152, tied=True),
        Shape("llama-1b", 2048, 16, 32, 8, 64, 8192, 128_256, tied=True),
        Shape("llama-3b", 3072, 28, 24, 8, 128, 8192, 128_256, tied=True),
        Shape("llama-8b", 4096, 32, 32, 8, 128, 14_336, 128_256, tied=False),
        Shape("llama-70b", 8192, 80, 64, 8, 128, 28_672, 128_256, tied=False),
        Shape("llama-405b", 16_384, 126, 128, 8, 128, 53_248, 128_256, tied=False),
        Shape(
            "qwen3-30b-a3b", 2048, 48, 32, 4, 128, 6144, 151_936, tied=False, biases=256, experts=Experts(128, 8, 768)
        ),
        Shape("mixtral-8x7b", 4096, 32, 32, 8, 128, 14_336, 32_000, tied=False, experts=Experts(8, 2, 14_336)),
        Shape("paper-52b", 8192, 64, 64, 64, 128, 32_768, 65_536, tied=False, gated=False),
    )
}
"""Published shapes (config.json of Llama 3.1 and 3.2, SmolLM2, Qwen3, Mixtral). `paper-52b`: 64 layers of width 8192 as
the paper's largest model has (2112.00861), 51.5 G parameters in the layers; heads of 128 are a guess."""

_KNOWN = {
    "meta-llama/llama-3.2-1b": "llama-1b",
    "meta-llama/llama-3.2-3b": "llama-3b",
    "meta-llama/llama-3.1-8b": "llama-8b",
    "meta-llama/meta-llama-3-8b": "llama-8b",
    "meta-llama/llama-3.1-70b": "llama-70b",
    "meta-llama/llama-3.3-70b": "llama-70b",
    "meta-llama/llama-3.1-405b": "llama-405b",
    "huggingfacetb/smollm2-135m": "smollm2-135m",
    "smollm2": "smollm2-135m",
    "qwen/qwen3-30b-a3b": "qwen3-30b-a3b",
    "qwen/qwen3-30b-a3b-base": "qwen3-30b-a3b",
    "qwen/qwen3-30b-a3b-instruct-2507": "qwen3-30b-a3b",
    "mistralai/mixtral-8x7b-v0.1": "mixtral-8x7b",
}
"""Hub names (without -Instruct) and built-in sources of the same shapes."""


_MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
"""Architectures of mixtures whose elements are counted as transformers has them."""


def find_shape(source: str, what: str) -> Shape:
    """The shape of a preset, a model folder, a config.json or a hub name of a known model.

    `what`: for the message, such as "models.pretrained". Raises ConfigError.
    """
    known = _KNOWN.get(source.lower().removesuffix("-instruct"), source)
    if known in PRESETS:
        return PRESETS[known]
    path = Path(source).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(
            f"{what}={source}: its shape is not known here; name a folder with its config.json or a shape with "
            f"--model {source}=SHAPE, SHAPE one of {', '.join(PRESETS)} or a path"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what}={source}: {path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{what}={source}: {path} is not a JSON object")
    return shape_of(content, source, what)


def shape_of(config: Mapping[str, Any], name: str, what: str = "model") -> Shape:
    """The shape that follows from the content of a transformers config.json (`text_config` of a model of several
    parts).

    Raises ConfigError where a number is missing or is none.
    """
    text = config.get("text_config")
    config = text if isinstance(text, dict) else config

    def number(*keys: str, default: int | None = None) -> int:
        for key in keys:
            found = config.get(key)
            if found is not None:
                if isinstance(found, bool) or not isinstance(found, int) or found < 1:
                    raise ConfigError(
                        f"{what}={name}: {key}={found!r} in its config.json must be a whole number above 0"
                    )
                return found
        if default is None:
            raise ConfigError(f"{what}={name}: its config.json has no {keys[0]}; plan knows decoder-only models")
        return default

    hidden = number("hidden_size", "n_embd", "d_model")
    heads = number("num_attention_heads", "n_head")
    kv_heads = number("num_key_value_heads", default=heads)
    head_dim = number("head_dim", default=max(1, hidden // heads))
    kind = str(config.get("model_type", ""))
    attention_bias = config.get("attention_bias", kind in ("qwen2", "qwen2_moe", "gpt2"))
    queries, keys = heads * head_dim, kv_heads * head_dim
    layers = number("num_hidden_layers", "n_layer")
    experts = None
    if (count := number("num_local_experts", "num_experts", "n_routed_experts", default=1)) > 1:
        if kind not in _MIXTURES:
            raise ConfigError(
                f"{what}={name}: a mixture of experts of model_type {kind or 'unknown'}; plan knows "
                f"{', '.join(_MIXTURES)}"
            )
        step, plain = number("decoder_sparse_step", default=1), set(config.get("mlp_only_layers") or ())
        experts = Experts(
            count,
            number("num_experts_per_tok"),
            number("moe_intermediate_size" if kind.startswith("qwen") else "intermediate_size"),
            number("shared_expert_intermediate_size") if kind == "qwen2_moe" else 0,
            kind == "qwen2_moe",
            sum(layer in plain or (layer + 1) % step > 0 for layer in range(layers)),
        )
    norms = {"qwen3": 2 * head_dim, "qwen3_moe": 2 * head_dim, "olmoe": queries + keys}.get(kind, 0)
    return Shape(
        name=name,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=number("intermediate_size", "n_inner", default=4 * hidden),
        vocab=number("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", kind == "gpt2")),
        gated=kind not in ("gpt2", "gpt_neox", "opt", "phi"),
        biases=(queries + 2 * keys if attention_bias else 0) + norms,
        experts=experts,
    )
