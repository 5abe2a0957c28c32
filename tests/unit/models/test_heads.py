"""Heads of half-precision models whose products are in full precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cai_dist.models.load import load_causal
from tests.tiny import save_llama


@pytest.mark.parametrize("tied", [True, False])
def test_an_output_layer_in_full_precision_is_that_of_its_numbers(tmp_path: Path, tied: bool) -> None:
    model = load_causal(save_llama(tmp_path, tied=tied, seed=3, layers=1), "bf16", "padded")
    ids, lengths = torch.arange(3, 12), torch.tensor([9])
    wanted = torch.ones(9, dtype=torch.bool)
    half = model(ids, lengths, wanted, 1.0, True)
    model.use_full_head()
    full = model(ids, lengths, wanted, 1.0, True)
    states = model.hf.model(input_ids=ids[None]).last_hidden_state[0].float()
    table = torch.log_softmax(states @ model.hf.get_output_embeddings().weight.float().T, -1)
    expected = table[:-1].gather(-1, ids[1:, None]).squeeze(-1)
    assert torch.allclose(full[0][1:], expected, atol=1e-5)
    assert not torch.allclose(half[0], full[0], atol=1e-5)
    gradients = torch.autograd.grad(full[0].sum(), list(model.parameters()))
    assert all(g.dtype == p.dtype for g, p in zip(gradients, model.parameters(), strict=True))
