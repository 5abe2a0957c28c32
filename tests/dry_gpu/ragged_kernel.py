"""The kernel for ragged sequences (`torch.nn.attention.varlen`), sequence by sequence on the CPU, with the kernel's
rules of dtypes and strides. Its gradient is written out: autograd does not run below a dispatch mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

PREFIX = "torch_attn::_varlen_attn"


def ragged_kernel(operator: Any) -> Callable[..., Any]:
    """What computes `operator`. Raises KeyError for one that the project does not use."""
    compute = {PREFIX: _forward, f"{PREFIX}_backward": _backward}[operator._schema.name]
    arguments = operator._schema.arguments

    def called(*args: Any, **kwargs: Any) -> Any:  # what has its default value does not come
        given = {one.name: one.default_value for one in arguments if one.has_default_value()}
        return compute(given | {one.name: value for one, value in zip(arguments, args, strict=False)} | kwargs)

    return called


def _forward(given: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """[N, heads, d] of causal attention, and two tensors that only the kernel's own gradient would need."""
    q, k, v, bounds = (given[name] for name in ("query", "key", "value", "cu_seq_q"))
    scale, grouped = given["scale"], given.get("enable_gqa", False)
    assert given["is_causal"] and list(given["window_size"]) == [-1, 0], "the project asks for causal attention"
    assert bounds.tolist()[-1] == len(q) and given["max_q"] == int(bounds.diff().max()), "bounds"
    assert q.dtype in (torch.float16, torch.bfloat16) and q.dtype == k.dtype == v.dtype, "the kernel's dtypes"
    assert bounds.dtype == torch.int32 and bounds.is_contiguous(), "the kernel reads bounds as int32"
    assert all(x.stride(-1) == 1 for x in (q, k, v)) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    assert q.shape[1] == k.shape[1] or (grouped and q.shape[1] % k.shape[1] == 0), "heads"
    parts = [
        _weights(a, b, scale) @ _repeated(c, a.shape[0])
        for (a, b, c) in _sequences(bounds, q.float(), k.float(), v.float())
    ]
    out = torch.cat(parts, 1).transpose(0, 1).to(q.dtype).contiguous()
    return out, torch.zeros(q.shape[1], q.shape[0]), torch.zeros(2, dtype=torch.uint64)


def _backward(given: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    grad, q, k, v, bounds = (given[name] for name in ("grad_out", "query", "key", "value", "cu_seq_q"))
    scale = given["scale"]
    found: list[list[Tensor]] = [[], [], []]
    for a, b, c, g in _sequences(bounds, *(x.float() for x in (q, k, v, grad))):
        heads, group = a.shape[0], a.shape[0] // b.shape[0]
        p, keys, values = _weights(a, b, scale), _repeated(b, heads), _repeated(c, heads)
        dp = g @ values.transpose(-1, -2)
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * _scale(a, scale)
        shared = (ds.transpose(-1, -2) @ a, p.transpose(-1, -2) @ g)
        for to, one in zip(found, (ds @ keys, *(x.unflatten(0, (-1, group)).sum(1) for x in shared)), strict=True):
            to.append(one)
    dq, dk, dv = (torch.cat(one, 1).transpose(0, 1).to(q.dtype).contiguous() for one in found)
    return dq, dk, dv


def _sequences(bounds: Tensor, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """[heads, n, d] of each sequence."""
    for start, end in pairwise(bounds.tolist()):
        yield [x[start:end].transpose(0, 1) for x in tensors]


def _weights(q: Tensor, k: Tensor, scale: float | None) -> Tensor:
    scores = (q @ _repeated(k, q.shape[0]).transpose(-1, -2)) * _scale(q, scale)
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def _repeated(x: Tensor, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[0], 0)


def _scale(q: Tensor, scale: float | None) -> float:
    return float(q.shape[-1]) ** -0.5 if scale is None else scale
