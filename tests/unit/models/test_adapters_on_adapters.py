"""What a stage with adapters writes is what later stages load: adapters on adapters, under scalar heads, in plain
PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

from cai_dist.config.training import LoraConfig
from cai_dist.errors import DataError
from cai_dist.models.adapter import base_of, write_adapter
from cai_dist.models.ends import end_ids
from cai_dist.models.layout import trunk_of
from cai_dist.models.load import (
    has_scalar_head,
    load_causal,
    load_config,
    load_hf_causal,
    load_hf_scalar,
    load_scalar,
    load_scalar_with_language,
)
from cai_dist.models.lora import add_lora, merged, split_parameters
from tests.architectures import ARCHITECTURES
from tests.tiny import END, save_llama

IDS, LENGTHS = torch.tensor([3, 4, 5, 6, 9, 11, 7]), torch.tensor([4, 3])
LORA = LoraConfig(rank=4, alpha=6.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("base"), tied=True, seed=0)


def trained(model: Any, folder: Path, source: str, seed: int) -> str:
    """Adapters of `model` with numbers as training would give them, and a head, saved as made on `source`."""
    add_lora(model, LORA, seed)
    factors = split_parameters(model.hf)[1]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in factors.values():
            one.b.copy_(torch.randn(one.b.shape, generator=generator) * 0.1)
    head = getattr(model.hf, "score", None)
    write_adapter(folder, source, model.hf, factors, None if head is None else head.weight)
    return str(folder)


@pytest.fixture(scope="module")
def sl(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """As SFT leaves it."""
    return trained(load_causal(base, "fp32"), tmp_path_factory.mktemp("sl"), base, 1)


@pytest.fixture(scope="module")
def preference(sl: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """As stage preference leaves it, begun from SL-CAI."""
    return trained(load_scalar(sl, "fp32", 5), tmp_path_factory.mktemp("preference"), sl, 2)


def scores(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS, LENGTHS)
    return found


def test_an_adapter_on_an_adapter_is_merged_into_what_that_one_makes(base: str, sl: str, tmp_path: Path) -> None:
    top = load_causal(sl, "fp32")
    policy = trained(top, tmp_path / "policy", sl, 3)
    assert base_of(policy) == base_of(sl) == base and base_of(base) == base
    plain, factors = split_parameters(top.hf)
    loaded = dict(load_hf_causal(policy, "fp32").named_parameters())
    assert all(torch.equal(loaded[name], merged(plain[name], one)) for name, one in factors.items())
    under = dict(load_hf_causal(sl, "fp32").named_parameters())
    assert not any(torch.equal(loaded[name], under[name]) for name in factors)
    assert end_ids(policy) == (END,) and load_config(policy).hidden_size == 64


def test_a_base_under_a_base_must_be_what_it_was(base: str, sl: str, tmp_path: Path) -> None:
    copied = tmp_path / "sl"
    copied.mkdir()
    for file in Path(sl).iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    policy = trained(load_causal(str(copied), "fp32"), tmp_path / "policy", str(copied), 3)
    load_hf_causal(policy, "fp32")
    other = trained(load_causal(base, "fp32"), tmp_path / "other", base, 9)
    (copied / "adapter_model.safetensors").write_bytes((Path(other) / "adapter_model.safetensors").read_bytes())
    with pytest.raises(DataError, match=r"policy: its base model .*sl' has other weights than those it was trained"):
        load_hf_causal(policy, "fp32")


def test_adapters_that_are_based_on_each_other_are_refused(sl: str, tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "a")):
        folder = tmp_path / name
        folder.mkdir()
        settings = json.loads((Path(sl) / "adapter_config.json").read_text())
        settings["base_model_name_or_path"] = str(tmp_path / base)
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match="adapters on each other; do they name each other as base"):
        load_hf_causal(str(tmp_path / "a"), "fp32")


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_scalar_model_begins_from_the_merged_adapter(sl: str, tmp_path: Path, layout: Any) -> None:
    load_hf_causal(sl, "fp32").save_pretrained(tmp_path / "whole")
    expected = load_scalar(str(tmp_path / "whole"), "fp32", 5, layout)
    found = load_scalar(sl, "fp32", 5, layout)
    assert torch.equal(scores(found), scores(expected))
    both = [load_scalar_with_language(one, "fp32", 5, layout) for one in (sl, str(tmp_path / "whole"))]
    one, other = (torch.cat(model(IDS, LENGTHS, torch.ones(7, dtype=torch.bool))) for model in both)
    assert torch.equal(one, other)


def test_a_preference_models_adapter_has_its_head_and_loads_in_plain_peft(sl: str, preference: str) -> None:
    ours = load_scalar(preference, "fp32", 77)
    adapted = load_scalar(sl, "fp32", 5)
    assert (scores(ours) - scores(adapted)).abs().max() > 0.1
    under = AutoModelForSequenceClassification.from_pretrained(base_of(sl), num_labels=1)
    under.load_state_dict(load_scalar(sl, "fp32", 0).hf.state_dict())
    theirs = PeftModel.from_pretrained(under, preference)
    with torch.no_grad():
        plain = [theirs(input_ids=ids[None]).logits.item() for ids in IDS.split(LENGTHS.tolist())]
    assert scores(ours)[LENGTHS.cumsum(0) - 1].tolist() == pytest.approx(plain, abs=1e-5)


def test_an_adapter_that_peft_made_of_a_classifier_is_read(base: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = PeftLora(r=2, lora_alpha=4, target_modules=["q_proj"], task_type="SEQ_CLS", init_lora_weights=False)
    theirs = get_peft_model(net, config)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        plain = [theirs(input_ids=ids[None]).logits.item() for ids in IDS.split(LENGTHS.tolist())]
    found = scores(load_scalar(str(tmp_path), "fp32", 0))
    assert found[LENGTHS.cumsum(0) - 1].tolist() == pytest.approx(plain, abs=1e-5)


def test_a_head_belongs_to_scalar_models_alone(base: str, sl: str, preference: str, tmp_path: Path) -> None:
    assert has_scalar_head(preference) and not has_scalar_head(sl) and not has_scalar_head(base)
    load_scalar(sl, "fp32", 0).hf.save_pretrained(tmp_path)
    assert has_scalar_head(str(tmp_path))
    with pytest.raises(DataError, match=r"scalar head \[1, 64\], which LlamaForCausalLM has not") as caught:
        load_hf_causal(preference, "fp32")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="a model without a scalar head"):
        load_hf_scalar(sl, "fp32")


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_head_stays_as_it_is(tmp_path: Path, tied: bool) -> None:
    model = load_scalar_with_language(save_llama(tmp_path, tied=tied, seed=1), "fp32", 3)
    add_lora(model, LORA, 0)
    moving = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in moving if ".lora_" not in name} == {"hf.score.weight"}


def test_layers_have_the_same_names_with_and_without_a_scalar_head() -> None:
    """An adapter of a causal model is merged into a scalar model by these names, whatever the architecture."""
    looked_at = 0
    for one in ARCHITECTURES:
        causal = one.network()
        if type(causal.config) not in AutoModelForSequenceClassification._model_mapping:
            continue
        with torch.device("meta"):
            scalar = AutoModelForSequenceClassification.from_config(causal.config)
        names = {name for name, module in scalar.named_modules() if isinstance(module, torch.nn.Linear)}
        inside = set(trunk_of(causal).modules())
        mine = {name for name, module in causal.named_modules() if isinstance(module, torch.nn.Linear)}
        assert {name for name in mine if causal.get_submodule(name) in inside} <= names, one.name
        looked_at += 1
    assert looked_at > 10
