"""Activations, logits, caches: by hand, and activations against what autograd keeps."""

from __future__ import annotations

import pytest
import torch

from cai_dist.plan.passes import (
    MAX_LOGITS,
    PREFILL_TOKENS,
    ROOM,
    Serving,
    kept_activations,
    kv_cache,
    logits,
)
from cai_dist.plan.shapes import Shape

SHAPE = Shape("tiny", 64, 2, 4, 2, 16, 160, 100, tied=False)


def test_constants_are_those_of_the_code() -> None:
    from cai_dist.engines.hf import continuous_batching, prefill_batches
    from cai_dist.losses import logprobs

    assert (MAX_LOGITS, ROOM, PREFILL_TOKENS) == (
        logprobs.MAX_LOGITS,
        continuous_batching.ROOM,
        prefill_batches.PREFILL_TOKENS,
    )


def test_kept_activations_by_hand() -> None:
    # fp32, a token: two norms 6 x 64, attention 3 x 64 + 2 x 32, MLP 4 x 160: 1280 numbers a layer; last norm 3 x 64
    assert kept_activations(SHAPE, 4, 1) == 4 * (2 * 1280 + 192)
    # bf16: norms 2 x 64 x 8 bytes, the rest 896 numbers of 2 bytes; last norm half of the two
    assert kept_activations(SHAPE, 2, 10) == 10 * (2 * (1024 + 1792) + 512)


def test_checkpointed_activations_by_hand() -> None:
    # Of each of two layers its input, 64 numbers; all 1280 of one that is computed again; the last norm.
    assert kept_activations(SHAPE, 4, 1, checkpointed=True) == 4 * (2 * 64 + 1280 + 192)


@pytest.mark.parametrize(("dtype", "item"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_autograd_keeps_what_is_counted(dtype: torch.dtype, item: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from cai_dist.models.causal import CausalModel

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=160,
        vocab_size=100, head_dim=16,
    )  # fmt: skip
    model = CausalModel(LlamaForCausalLM(config).to(dtype))
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    tokens = 8 * 32
    ids = torch.randint(0, 100, (tokens,))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = model(ids, torch.full((8,), 32), torch.zeros(tokens, dtype=torch.bool), 1.0, False)[0]
    assert out.shape == (tokens,)
    counted = kept_activations(SHAPE, item, tokens)
    # Not counted: ids, rotary angles, the statistics of norms and of attention.
    assert sum(kept.values()) == pytest.approx(counted, rel=0.05)


def test_logits_are_bounded_by_a_chunk() -> None:
    # fp32 in a forward pass: as they are, and normalised; scaled by a temperature once more
    assert logits(SHAPE, 4, 10, scaled=False, training=False) == 10 * 100 * 8
    assert logits(SHAPE, 4, 10, scaled=True, training=False) == 10 * 100 * 12
    # bf16: 2 + 4 + 4
    assert logits(SHAPE, 2, 10, scaled=False, training=True) == 10 * 100 * 10
    assert logits(SHAPE, 4, 0, scaled=False, training=True) == 0
    many = MAX_LOGITS // 100 + 1000
    assert logits(SHAPE, 4, many, scaled=False, training=False) == MAX_LOGITS * 8


def test_keys_and_values_by_hand() -> None:
    serving = Serving(rows=3, prompt=10, new=4)
    assert serving.columns == 10 + 4 + 4
    whole = 2 * (2 * 2 * 2 * 16) * 3 * 18  # item x (k and v, layers, heads, d) x rows x columns
    assert kv_cache(SHAPE, 2, serving) == whole + whole // 2  # and one layer of two twice, while it moves


def test_room_is_at_most_a_fixed_number_of_columns() -> None:
    assert Serving(1, 10, 1000).columns == 1010 + ROOM
