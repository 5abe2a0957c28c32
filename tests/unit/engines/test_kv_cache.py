"""The cache and the attention of one new token against transformers' own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cai_dist.engines.hf.kv_cache import RoomyLayer, decode_attention, roomy_cache
from cai_dist.models.load import load_hf_causal
from tests.tiny import save_llama


def states(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values; the width of a value may be another."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, columns, 4, generator=generator), torch.randn(rows, 2, columns, 3, generator=generator)


@pytest.mark.parametrize("room", [0, 1, 3, 10])
def test_it_holds_what_a_plain_cache_holds(room: int) -> None:
    roomy, plain = RoomyLayer(room), DynamicLayer()
    rows = 5
    for step, columns in enumerate([4, 1, 1, 2, 1, 1]):  # more than there was room for
        new = states(rows, columns, step)
        for found, expected in zip(roomy.update(*new), plain.update(*new), strict=True):
            assert torch.equal(found, expected)
        assert roomy.get_seq_length() == plain.get_seq_length()
        if step in (1, 3):
            left = torch.arange(rows)[torch.arange(rows) != 1]
            rows -= 1
            roomy.batch_select_indices(left)
            plain.batch_select_indices(left)
            assert torch.equal(roomy.keys, plain.keys) and torch.equal(roomy.values, plain.values)


def test_with_room_nothing_is_copied() -> None:
    layer = RoomyLayer(2)
    first, _ = layer.update(*states(1, 3, 0))
    second, _ = layer.update(*states(1, 1, 1))
    assert second.data_ptr() == first.data_ptr()


def test_layers_that_slide_stay_as_they_are(tmp_path_factory: pytest.TempPathFactory) -> None:
    config = load_hf_causal(save_llama(tmp_path_factory.mktemp("model"), tied=True, seed=0), "fp32").config
    assert {type(layer) for layer in roomy_cache(config, 4).layers} == {RoomyLayer}
    config.layer_types = ["sliding_attention"] + ["full_attention"] * (config.num_hidden_layers - 1)
    config.sliding_window = 3
    assert [type(layer) for layer in DynamicCache(config=config).layers][0] is DynamicSlidingWindowLayer
    assert [type(layer) for layer in roomy_cache(config, 4).layers][:2] == [DynamicSlidingWindowLayer, RoomyLayer]


@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("mask", ["none", "rows", "heads"])
def test_attention_is_transformers_own(heads: int, shared: int, queries: int, mask: str) -> None:
    generator = torch.Generator().manual_seed(heads)
    query = torch.randn(2, heads, queries, 8, generator=generator)
    key, value = (torch.randn(2, shared, 5, 8, generator=generator) for _ in range(2))
    module = SimpleNamespace(num_key_value_groups=heads // shared, is_causal=True)
    seen = torch.rand(2, 1 if mask == "rows" else heads, queries, 5, generator=generator) < 0.6
    seen[..., -1] = True
    given = None if mask == "none" else seen
    found = decode_attention(module, query, key, value, given, scaling=0.3)[0]
    expected = sdpa_attention_forward(module, query, key, value, given, scaling=0.3)[0]
    assert found.shape == (2, queries, heads, 8)
    assert torch.allclose(found, expected, atol=1e-6)
