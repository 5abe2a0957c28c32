"""Frozen linear layers in 4 or 8 bits, by bitsandbytes: the base under LoRA adapters (QLoRA, Dettmers et al. 2023,
2305.14314).

A layer keeps codes and scales alone; in each pass its weight is made of them in the model's precision, multiplied with
and dropped, in the backward pass once more. So a pass that trains and one that scores compute the same product and no
sequence depends on the others of its batch, which bitsandbytes' own layers do not promise: LLM.int8 quantises
activations, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cai_dist.config.training import Quantization
from cai_dist.errors import ConfigError
from cai_dist.models.causal import CausalModel
from cai_dist.models.layout import trunk_of
from cai_dist.models.partition import is_partitioned
from cai_dist.models.scalar import ScalarHeadModel

BLOCK = 64
"""Elements of a weight that share a scale in nf4."""


class QuantizedLinear(nn.Linear):
    """A frozen linear layer [out, in] whose weight is kept in `kind`.

    nf4: two elements a byte, in blocks of `BLOCK` with a scale each, the scales in 8 bits (double quantisation); int8:
    an element a byte, a scale in fp32 for each output. A bias stays as it is. `weight` is made afresh whenever it is
    asked for, in the dtype of the original.
    """

    codes: Tensor

    def __init__(self, linear: nn.Linear, kind: Quantization) -> None:
        nn.Module.__init__(self)  # a parameter of the size of the weight never exists
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind, self.dtype = kind, linear.weight.dtype
        self.register_parameter("bias", linear.bias)
        codes, self._scales = _quantize(linear.weight.detach(), kind)
        # Nothing of it is in a checkpoint: it follows from the model that the training started from.
        self.register_buffer("codes", codes, persistent=False)
        if kind == "nf4":
            self.register_buffer("absmax", self._scales.absmax, persistent=False)
        self.train(linear.training)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight [out, in] that the codes stand for."""
        import bitsandbytes.functional as bnb

        with torch.no_grad():
            if self.kind == "nf4":
                found: Tensor = bnb.dequantize_4bit(self.codes, self._scales)
                return found
            return bnb.int8_vectorwise_dequant(self.codes, self._scales).to(self.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """[..., out] for `input` [..., in]."""
        found: Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Scales go where the codes go, and stay as precise as they are when a model is cast."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.kind == "nf4":
            self._scales.to(self.codes.device)
            self._scales.absmax = self.absmax
        else:
            self._scales = self._scales.to(self.codes.device)
        return self


class _Product(torch.autograd.Function):
    """input @ weight^T + bias with a frozen weight that is not kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(input, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.weight, None


class QuantizedWeight:
    """Stands for the weight of a quantised layer where a model's parameters are listed: shape and dtype, and by
    `detach` the weight itself, made afresh."""

    requires_grad = False

    def __init__(self, layer: QuantizedLinear) -> None:
        self._layer = layer
        self.shape = torch.Size((layer.out_features, layer.in_features))
        self.dtype = layer.dtype

    def detach(self) -> Tensor:
        """The weight [out, in] that the codes stand for."""
        return self._layer.weight

    def element_size(self) -> int:
        """Bytes of one element of `detach`."""
        return self.dtype.itemsize


def quantize_trunk(model: CausalModel | ScalarHeadModel, kind: Quantization) -> None:
    """Quantise the linear layers (torch.nn.Linear) of the trunk in place; embeddings, norms and output layers stay as
    they are. `kind` none changes nothing. Raises ConfigError for weights that ZeRO-3 has cut."""
    if kind == "none":
        return
    trunk = trunk_of(model.hf)
    for name, module in list(trunk.named_modules()):
        if type(module) is not nn.Linear:
            continue
        if is_partitioned(module.weight):
            raise ConfigError(
                f"lora.quantization={kind}: cannot be with zero: 3, which cuts weights before; lower zero"
            )
        parent, _, last = name.rpartition(".")
        setattr(trunk.get_submodule(parent), last, QuantizedLinear(module, kind))


def quantized_weights(hf: Any) -> dict[str, QuantizedWeight]:
    """The weights of quantised layers by their names in the plain model, without adapters on them."""
    return {
        f"{name.removesuffix('.base_layer')}.weight": QuantizedWeight(module)
        for name, module in hf.named_modules()
        if isinstance(module, QuantizedLinear)
    }


def _quantize(weight: Tensor, kind: Quantization) -> tuple[Tensor, Any]:
    """Codes and scales of a weight [out, in]."""
    import bitsandbytes.functional as bnb

    if kind == "nf4":
        codes, state = bnb.quantize_4bit(
            weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type=kind
        )
        return codes, state
    rows, scales, _ = bnb.int8_vectorwise_quant(weight.contiguous().half())
    return rows, scales
