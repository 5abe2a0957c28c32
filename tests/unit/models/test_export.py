"""Model folders as people have them are exported, whatever their generation_config.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from cai_dist.models.export import repair_generation, save_model
from cai_dist.models.load import load_hf_causal, load_scalar
from tests.tiny import save_llama


@pytest.mark.parametrize(
    ("given", "changes", "kept"),
    [
        ({"temperature": 0.9}, ("do_sample=True",), {"temperature": 0.9}),  # vicuna 1.1
        ({"temperature": 0.9, "top_p": 0.6, "pad_token_id": 0}, ("do_sample=True",), {"top_p": 0.6, "pad_token_id": 0}),
        ({"temperature": 0.0}, ("temperature=None",), {}),  # greedy decoding, as people write it
        ({"pad_token_id": -1, "eos_token_id": [1, 2]}, ("pad_token_id=None",), {"eos_token_id": [1, 2]}),
        (
            {"temperature": 0.9, "length_penalty": 2.0, "eos_token_id": 2},
            ("do_sample=True", "length_penalty=None"),
            {"temperature": 0.9, "eos_token_id": 2},
        ),
        ({"output_scores": True, "max_new_tokens": 7}, ("output_scores=None",), {"max_new_tokens": 7}),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20}, (), {"temperature": 0.6, "top_k": 20}),
    ],
)
def test_a_generation_config_is_repaired_where_transformers_would_not_save_it(
    given: dict[str, Any], changes: tuple[str, ...], kept: dict[str, Any], tmp_path: Path
) -> None:
    generation = GenerationConfig.from_dict(given)
    assert repair_generation(generation) == changes
    generation.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert kept.items() <= saved.items()
    assert not {change.partition("=")[0] for change in changes if change.endswith("None")} & set(saved)


def test_a_model_with_a_temperature_and_no_sampling_is_saved_with_its_ends_of_turns(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model", tied=True, seed=0)
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "eos_token_id": [2, 7]}))
    hf = load_hf_causal(source, "fp32")
    state = {name: tensor for name, tensor in hf.state_dict().items() if name != "lm_head.weight"}
    assert save_model(hf, tmp_path / "out") == ("do_sample=True",)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert back.generation_config.eos_token_id == [2, 7] and back.generation_config.temperature == 0.9
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in state.items())


def test_a_scalar_model_is_saved_too(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model", tied=True, seed=0)
    assert save_model(load_scalar(source, "fp32", 1).hf, tmp_path / "out") == ()
    assert (tmp_path / "out" / "config.json").is_file()
