"""Shape checks. A silent broadcast of [B] against [B, 1] gives [B, B] and a plausible, wrong loss."""

from __future__ import annotations

from torch import Tensor


def same_shape(**tensors: Tensor) -> None:
    """Raise ValueError, naming every tensor and its shape, unless all shapes are equal."""
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes must be equal, got {shapes}")


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` where `mask` (bool, same shape); what stands elsewhere, NaN included, has no part in it."""
    return values.masked_fill(~mask, 0.0).sum()
