"""A model's tensors under the names of its checkpoint, one tensor at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cai_dist.models.checkpoint_names import converts_alone, to_checkpoint
from tests.architectures import ARCHITECTURES

MIXTURES = [one for one in ARCHITECTURES if one.name in ("Mixtral", "Qwen3-MoE", "OLMoE", "DeepSeek V3", "Jamba")]


@pytest.mark.parametrize("architecture", MIXTURES, ids=lambda one: one.name)
def test_tensors_one_by_one_are_those_that_transformers_saves(architecture: Any, tmp_path: Path) -> None:
    hf = architecture.network()
    named = dict(hf.named_parameters())
    hf.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert converts_alone(hf, named) and set(written) != set(named)
    found: dict[str, torch.Tensor] = {}
    for name in reversed(named):
        found |= to_checkpoint(hf, {name: named[name]})
    parameters = {name: tensor for name, tensor in written.items() if name in found}
    assert set(found) == set(parameters) and len(found) > len(named)
    assert all(torch.equal(found[name], tensor) for name, tensor in parameters.items())
    assert set(written) - set(found) <= {name for name, _ in hf.named_buffers()}


def test_tensors_that_need_each_other_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def joined(hf: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"qk": torch.cat([tensors["q"], tensors["k"]])} if set(tensors) == {"q", "k"} else dict(tensors)

    monkeypatch.setattr("cai_dist.models.checkpoint_names.revert_weight_conversion", joined)
    outlines = {"q": torch.empty(2, 3, device="meta"), "k": torch.empty(2, 3, device="meta")}
    assert not converts_alone(nn.Module(), outlines)
    assert converts_alone(nn.Module(), {"q": outlines["q"]})
