"""The kernel for ragged sequences gives what the rectangles give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cai_dist.models.packed_attention import Packing, packed_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTHS = [70, 1, 40, 129, 128]


class Layer:
    """What an attention function reads of the layer that calls it."""

    is_causal = True


@pytest.mark.parametrize("key_heads", [4, 2])
def test_ragged_attention_is_attention_in_rectangles(key_heads: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    tokens = sum(LENGTHS)
    positions = torch.cat([torch.arange(n) for n in LENGTHS]).cuda()
    packing = Packing.of(torch.tensor(LENGTHS).cuda(), positions)
    shapes = ((1, heads, tokens, 64) for heads in (4, key_heads, key_heads))
    exact = [torch.randn(s, generator=generator, device="cuda", requires_grad=True) for s in shapes]
    half = [x.detach().bfloat16().requires_grad_() for x in exact]
    outs: list[Any] = [packed_attention(Layer(), *x, None, scaling=0.1, packing=packing)[0] for x in (exact, half)]
    ramp = torch.linspace(-1, 1, tokens, device="cuda")[None, :, None, None]
    for out in outs:
        (out.float() * ramp).sum().backward()
    assert outs[1].dtype == torch.bfloat16
    torch.testing.assert_close(outs[1].float(), outs[0], rtol=0.05, atol=0.05)
    for one, other in zip(half, exact, strict=True):
        assert one.grad is not None and other.grad is not None
        scale = float(other.grad.abs().max())
        torch.testing.assert_close(one.grad.float(), other.grad, rtol=0.05, atol=0.03 * scale)
