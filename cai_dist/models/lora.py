"""Low-rank adapters (LoRA, arXiv 2106.09685) on a Hugging Face model, by PEFT.

Each adapted linear layer computes W x + scaling * B (A x) with W frozen, A [rank, in], B [out, rank] and
scaling = alpha / rank. The layers are exchanged inside the model, so that whoever calls the model or its trunk calls
the adapters too; with them switched off it is the model that the training started from, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cai_dist.config.training import LoraConfig
from cai_dist.errors import ConfigError
from cai_dist.models.causal import CausalModel
from cai_dist.models.layout import trunk_of
from cai_dist.models.quantized import QuantizedLinear, QuantizedWeight, quantized_weights
from cai_dist.models.scalar import ScalarHeadModel

ADAPTER = "default"
"""PEFT's name of the one adapter."""


@dataclass(frozen=True)
class LoraFactors:
    """What one layer's adapter adds to its weight [out, in]: scaling * b @ a."""

    a: Tensor
    b: Tensor
    scaling: float


def add_lora(model: CausalModel | ScalarHeadModel, config: LoraConfig, seed: int, setting: str = "lora") -> None:
    """Put adapters into `model` (in place) and freeze the rest; a scalar head stays trainable.

    A is drawn from `seed` alone (the same on every rank), B is 0: at first the outputs are those of the base, bit for
    bit. Raises ConfigError, in words of `setting`, for target modules that the model does not have.
    """
    from peft import LoraConfig as PeftLora
    from peft import inject_adapter_in_model

    hf = model.hf
    targets = _target_names(hf, config, setting)
    made = PeftLora(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # annotated int, used as a number
        lora_dropout=config.dropout,
        target_modules=list(targets),
    )
    inject_adapter_in_model(made, hf, adapter_name=ADAPTER)
    _seed_adapters(hf, seed)
    if isinstance(model, ScalarHeadModel):
        hf.score.requires_grad_(True)
        if model.language is not None:  # no part of `hf` where it is not tied
            model.language.requires_grad_(False)


PlainParameter = nn.Parameter | QuantizedWeight
"""A parameter of a plain model, or what stands for one that is quantised."""


def split_parameters(hf: Any) -> tuple[dict[str, PlainParameter], dict[str, LoraFactors]]:
    """The parameters of the plain model under the plain model's names, and the adapters by the names of the weights
    that they change. Without adapters the second is empty."""
    plain: dict[str, PlainParameter] = dict(hf.named_parameters())
    factors = {}
    for name, layer in _adapted(hf):
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        factors[f"{name}.weight"] = LoraFactors(a, b, layer.scaling[ADAPTER])
        for inner, _ in layer.named_parameters():
            parameter = plain.pop(f"{name}.{inner}")
            if inner.startswith("base_layer."):
                plain[f"{name}.{inner.removeprefix('base_layer.')}"] = parameter
    return plain | quantized_weights(hf), factors


def merged(weight: Tensor, factors: LoraFactors, start: int | None = None) -> Tensor:
    """A new tensor W + scaling * B A, computed in fp32, in the dtype of `weight`; nothing is changed in place. With
    `start`, `weight` [n] is the elements of the flattened W from there on, and so is the result, bit for bit."""
    with torch.no_grad():
        delta = factors.b.float() @ factors.a.float()
        if start is not None:
            delta = delta.view(-1)[start : start + weight.numel()]
        return (weight.float() + factors.scaling * delta).to(weight.dtype)


@contextmanager
def adapters_off(hf: Any) -> Iterator[None]:
    """The model without its adapters while the block runs, however the block ends. For passes without gradients."""
    layers = [layer for _, layer in _adapted(hf)]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def adapter_dropouts(hf: Any) -> list[nn.Module]:
    """What stands before A in each adapted layer: a dropout, or nothing where `LoraConfig.dropout` is 0."""
    return [layer.lora_dropout[ADAPTER] for _, layer in _adapted(hf)]


def lora_summary(hf: Any) -> str:
    """Rank, alpha, layers and how the base is kept in words; empty without adapters. Equal exactly where the adapters
    have one shape on one base."""
    names = [name for name, _ in _adapted(hf)]
    if not names:
        return ""
    config = hf.peft_config[ADAPTER]
    kinds = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
    base = next((f", {layer.kind} base" for layer in hf.modules() if isinstance(layer, QuantizedLinear)), "")
    return f"rank {config.r}, alpha {config.lora_alpha:g}, {len(names)} layers ({kinds}){base}"


def _adapted(hf: Any) -> list[tuple[str, Any]]:
    """The adapted layers with their names in the plain model."""
    if not hasattr(hf, "peft_config"):
        return []
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in hf.named_modules() if isinstance(module, LoraLayer)]


def _target_names(hf: Any, config: LoraConfig, setting: str) -> tuple[str, ...]:
    """Last components of the names of the layers to adapt: those of all linear layers of the trunk, or the user's."""
    trunk = trunk_of(hf)
    inside = {name.rpartition(".")[2]: module for name, module in trunk.named_modules() if name}
    linear = sorted(name for name, module in inside.items() if isinstance(module, nn.Linear))
    if config.target_modules == "auto":
        if not linear:
            raise ConfigError(f"{setting}: {type(hf).__name__} has no linear layers (torch.nn.Linear) to adapt")
        return tuple(linear)
    for name in config.target_modules:
        if name not in linear:
            raise ConfigError(
                f"{setting}.target_modules: {name!r} is no linear layer in the blocks of {type(hf).__name__}; "
                f"must be auto or some of {', '.join(linear)}"
            )
    return tuple(sorted(config.target_modules))


def _seed_adapters(hf: Any, seed: int) -> None:
    """A uniform in +-1/sqrt(in) as PEFT draws it, but from `seed` alone; B = 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in _adapted(hf):
            a: Tensor = layer.lora_A[ADAPTER].weight
            draw = torch.rand(a.shape, generator=generator, dtype=torch.float32)
            a.copy_((2 * draw - 1) / a.shape[1] ** 0.5)
            layer.lora_B[ADAPTER].weight.zero_()
