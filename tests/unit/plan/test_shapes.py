"""Parameters counted by hand, by transformers, and as published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cai_dist.config.training import LoraConfig
from cai_dist.errors import ConfigError
from cai_dist.plan.roles import trained_elements
from cai_dist.plan.shapes import PRESETS, Shape, find_shape, shape_of

SMALL = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "tie_word_embeddings": False,
}


def test_elements_by_hand() -> None:
    shape = shape_of(SMALL, "small")
    assert shape.attention == 8 * 8 + 2 * 8 * 4 + 8 * 8  # q, k and v, o: heads of 2
    assert shape.mlp == 3 * 8 * 20
    assert shape.matrices == shape.multiplied == 3 * (192 + 480)
    assert shape.trunk == 50 * 8 + 3 * 688 + 8
    assert shape.parameters == 2472 + 400
    assert shape.scalar_parameters == 2472 + 8
    assert shape.kv_elements == 2 * 3 * 2 * 2


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("qwen3-30b-a3b", 30_532_122_624), ("mixtral-8x7b", 46_702_792_704)]
    + [("smollm2-135m", 134_515_008), ("llama-1b", 1_235_814_400), ("llama-8b", 8_030_261_248)]
    + [("llama-70b", 70_553_706_496), ("llama-405b", 405_853_388_800)],
)
def test_presets_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert PRESETS[name].parameters == parameters


MIXTURE = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}


def test_a_token_is_multiplied_with_its_experts_and_the_router_alone() -> None:
    shape = shape_of({**SMALL, **MIXTURE, "model_type": "mixtral", "moe_intermediate_size": None}, "small")
    assert shape.matrices == 3 * (192 + 4 * 480 + 4 * 8)
    assert shape.multiplied == 3 * (192 + 2 * 480 + 4 * 8)
    assert (shape.width, shape.largest) == (40, 4 * 2 * 8 * 20)
    assert PRESETS["qwen3-30b-a3b"].multiplied / 1e9 == pytest.approx(2.7, abs=0.1)  # A3B: 3.3 with both embeddings


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("kind", "more"),
    [("llama", {}), ("qwen2", {}), ("qwen3", {}), ("mistral", {})]
    + [("mixtral", MIXTURE), ("qwen3_moe", MIXTURE | {"mlp_only_layers": [1]}), ("olmoe", MIXTURE)]
    + [("qwen2_moe", MIXTURE | {"shared_expert_intermediate_size": 16, "decoder_sparse_step": 2})],
)
def test_transformers_counts_the_same(kind: str, more: dict, tied: bool) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    content = {**SMALL, **more, "tie_word_embeddings": tied}
    config = AutoConfig.for_model(kind, **{k: v for k, v in content.items() if k != "model_type"}, num_labels=1)
    shape = shape_of(config.to_dict(), kind)
    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(config)
        scalar = None if kind == "olmoe" else AutoModelForSequenceClassification.from_config(config)
    assert shape.parameters == sum(p.numel() for p in causal.parameters())
    assert scalar is None or shape.scalar_parameters == sum(p.numel() for p in scalar.parameters())


def test_a_folder_a_file_and_a_hub_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL), "utf-8")
    assert find_shape(str(tmp_path), "models.pretrained").hidden == 8
    assert find_shape(str(tmp_path / "config.json"), "models.pretrained").layers == 3
    assert find_shape("meta-llama/Llama-3.1-8B-Instruct", "models.assistant") == PRESETS["llama-8b"]
    assert find_shape("smollm2", "models.assistant") == PRESETS["smollm2-135m"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": "8"}, "hidden_size='8'"),
        ({"num_hidden_layers": None}, "has no num_hidden_layers"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"num_local_experts": 8}, "mixture of experts of model_type llama; plan knows mixtral"),
    ],
)
def test_a_config_that_does_not_say_its_shape_is_one_line(change: dict, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        shape_of({**SMALL, **change}, "models/mine", "models.pretrained")
    assert says in str(error.value)
    assert str(error.value).startswith("models.pretrained=models/mine")
    assert "\n" not in str(error.value)


def test_an_unknown_hub_name_says_how_to_name_a_shape() -> None:
    with pytest.raises(ConfigError, match=r"org/model: its shape is not known.*--model .*llama-8b"):
        find_shape("org/model", "models.pretrained")


def test_a_model_of_several_parts_is_its_language_model() -> None:
    assert isinstance(shape_of({"model_type": "outer", "text_config": SMALL}, "x"), Shape)
    assert shape_of({"model_type": "outer", "text_config": SMALL}, "x").vocab == 50


def test_adapters_stand_on_the_attention_of_a_mixture() -> None:
    shape = PRESETS["qwen3-30b-a3b"]
    found = trained_elements(shape, LoraConfig(rank=4), causal=True)
    assert found.trained == 48 * 4 * ((2048 + 4096) * 2 + (2048 + 512) * 2)
    assert (
        trained_elements(shape, LoraConfig(rank=4, quantization="nf4"), causal=True).quantized == 48 * shape.attention
    )
