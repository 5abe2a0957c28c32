"""Row 4 of what people bring: the small copy of an architecture has every kind of layer that the whole one has."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from cai_dist.errors import ConfigError
from cai_dist.models.shrunken import layer_kinds, shrunken_causal, shrunken_config

PLAIN = (
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "phi", "phi3", "gpt2",
    "gpt_neox", "gptj", "opt", "falcon", "cohere", "granite", "olmo2", "olmoe", "stablelm", "starcoder2", "mpt",
    "mamba", "bamba",
)  # fmt: skip
"""Architectures all of whose layers are alike, in the sizes of transformers' own configurations (7B and the like)."""
MIXED = {
    "gemma2": 2,
    "gemma3_text": 6,
    "cohere2": 4,
    "gpt_oss": 2,
    "qwen3_next": 4,
    "deepseek_v3": 4,
    "glm4_moe": 2,
    "jamba": 5,
    "smollm3": 4,
    "recurrent_gemma": 3,
}
"""Those with several kinds of layers, and how many of the first layers have all of them."""


def default(model_type: str) -> PreTrainedConfig:
    return CONFIG_MAPPING[model_type]()


def modules(layer: torch.nn.Module) -> tuple[str, ...]:
    return tuple(sorted(type(module).__name__ for module in layer.modules()))


@pytest.mark.parametrize("model_type", PLAIN)
def test_the_copy_is_of_the_same_class_and_small(model_type: str) -> None:
    whole = default(model_type)
    hf = shrunken_causal(whole)
    assert type(hf) is AutoModelForCausalLM._model_mapping[type(whole)]
    text = hf.config.get_text_config()
    assert text.num_hidden_layers == 2 < whole.num_hidden_layers
    assert sum(p.numel() for p in hf.parameters()) < 30e6
    assert not hf.training and all(p.dtype == torch.float32 for p in hf.parameters())


@pytest.mark.parametrize("model_type", MIXED)
def test_every_kind_of_layer_that_occurs_is_in_the_copy(model_type: str) -> None:
    whole = default(model_type)
    small = shrunken_config(whole).get_text_config()
    assert small.num_hidden_layers == MIXED[model_type]
    with torch.device("meta"):
        large, copied = (AutoModelForCausalLM.from_config(c) for c in (whole, shrunken_config(whole)))
    kinds = [
        {
            modules(m)
            for found in hf.modules()
            if isinstance(found, torch.nn.ModuleList) and len(found) == n
            for m in found
        }
        for hf, n in ((large, whole.get_text_config().num_hidden_layers), (copied, small.num_hidden_layers))
    ]
    assert kinds[0] == kinds[1]
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        if isinstance(getattr(small, name, None), list):
            assert set(getattr(small, name)) == set(getattr(whole.get_text_config(), name))
            assert len(getattr(small, name)) == small.num_hidden_layers


@pytest.mark.parametrize("model_type", ["gemma2", "qwen3_next", "gpt_oss"])
def test_a_copy_of_several_kinds_runs(model_type: str) -> None:
    hf = shrunken_causal(default(model_type))
    assert len(set(layer_kinds(hf))) == 2


def test_what_is_not_a_width_stays() -> None:
    whole = default("mixtral")
    small = shrunken_config(whole)
    for name in ("num_local_experts", "num_experts_per_tok", "rope_parameters", "sliding_window", "hidden_act"):
        assert getattr(small, name) == getattr(whole, name)
    assert small.hidden_size // small.num_attention_heads == whole.hidden_size // whole.num_attention_heads
    assert small.num_attention_heads > small.num_key_value_heads > 1  # grouped, as in the whole


def test_ids_of_special_tokens_have_rows_in_the_small_vocabulary() -> None:
    config = LlamaConfig(
        vocab_size=128_256, pad_token_id=128_004, eos_token_id=[128_001, 128_009], bos_token_id=128_000
    )
    hf = shrunken_causal(config)
    text = hf.config
    assert max(text.pad_token_id, text.bos_token_id, *text.eos_token_id) < text.vocab_size == 512
    assert config.vocab_size == 128_256 and config.num_hidden_layers == 32  # the given one is not touched


def test_the_same_copy_twice_and_the_callers_random_numbers_untouched() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (shrunken_causal(default("gpt2")).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_attention_and_biases_matter_in_the_copy() -> None:
    """Under transformers' own weights (0.02) attention is even, and a dropped argument of it would not be seen."""
    hf = shrunken_causal(LlamaConfig(attention_bias=True, num_hidden_layers=2))
    ids = torch.arange(1, 6)[None]
    with torch.no_grad():
        one, other = (hf(input_ids=x).logits[0, -1] for x in (ids, ids[:, [1, 0, 2, 3, 4]]))
        assert (one - other).abs().max() > 0.1 * one.abs().max()
    assert hf.model.layers[0].self_attn.q_proj.bias.abs().min() > 0


def test_an_architecture_of_which_no_copy_runs_is_said() -> None:
    with pytest.raises(ConfigError, match="no small copy of model type 'nemotron' runs") as caught:
        shrunken_causal(default("nemotron"))  # its default names no number of key-value heads
    assert "\n" not in str(caught.value)
