"""Adapters: what is trained, what stays, what they compute, and folders that others can read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cai_dist.config.training import LoraConfig
from cai_dist.errors import ConfigError, DataError
from cai_dist.models.adapter import write_adapter
from cai_dist.models.load import load_causal, load_hf_causal, load_scalar, load_tokenizer
from cai_dist.models.lora import adapters_off, add_lora, lora_summary, merged, split_parameters
from cai_dist.world.tokenizer import build_tokenizer
from tests.tiny import save_llama

IDS = torch.tensor([[3, 4, 5, 6, 9, 11]])
LORA = LoraConfig(rank=4, alpha=6.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("model"), tied=True, seed=0)


def adapted(folder: str, config: LoraConfig = LORA, *, learnt: bool = True, seed: int = 5, dtype: str = "fp32") -> Any:
    """The Hugging Face model with adapters; `learnt` gives B numbers, as training would."""
    model = load_causal(folder, dtype, "padded")  # type: ignore[arg-type]
    add_lora(model, config, seed)
    if learnt:
        learn(model.hf)
    return model.hf


def learn(hf: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factors in split_parameters(hf)[1].values():
            factors.b.copy_(torch.randn(factors.b.shape, generator=generator) * 0.1)


def logits(hf: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = hf(input_ids=IDS, use_cache=False).logits
    return out


def test_fresh_adapters_change_nothing_and_only_they_are_trained(folder: str) -> None:
    hf = adapted(folder, learnt=False)
    assert torch.equal(logits(hf), logits(load_hf_causal(folder, "fp32")))
    trained = {name for name, p in hf.named_parameters() if p.requires_grad}
    kinds = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in trained}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(trained) == 2 * 7 * 2, "A and B of seven linear layers in two blocks, and nothing else"
    assert lora_summary(hf).startswith("rank 4, alpha 6, 14 layers")
    assert lora_summary(load_hf_causal(folder, "fp32")) == ""


def test_a_scalar_model_trains_adapters_and_its_head(folder: str) -> None:
    model = load_scalar(folder, "fp32", seed=1)
    add_lora(model, LORA, seed=2)
    trained = {name for name, p in model.hf.named_parameters() if p.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == {"score.weight"}
    assert len(trained) == 2 * 7 * 2 + 1


def test_adapters_follow_from_the_seed_alone(folder: str) -> None:
    made = []
    for seed, global_seed in ((7, 0), (7, 1), (8, 1)):
        torch.manual_seed(global_seed)
        made.append(split_parameters(adapted(folder, learnt=False, seed=seed))[1])
    first, same, other = ({name: one.a.detach() for name, one in factors.items()} for factors in made)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    bound = 1 / 64**0.5
    a = first["model.layers.0.self_attn.q_proj.weight"]
    assert a.shape == (4, 64) and a.abs().max() <= bound and a.std() == pytest.approx(bound / 3**0.5, rel=0.15)


@pytest.mark.parametrize("names", [("q_proj", "v_proj"), ("down_proj",)])
def test_named_modules_alone_are_adapted(folder: str, names: tuple[str, ...]) -> None:
    hf = adapted(folder, LoraConfig(rank=2, target_modules=names))
    found = {name.removesuffix(".weight").rpartition(".")[2] for name in split_parameters(hf)[1]}
    assert found == set(names)


@pytest.mark.parametrize("names", [("query",), ("q_proj", "lm_head"), ("embed_tokens",), ("mlp",)])
def test_names_that_are_no_linear_layer_of_the_blocks_are_refused(folder: str, names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"lora\.target_modules: .*auto or some of down_proj, ") as caught:
        adapted(folder, LoraConfig(target_modules=names))
    assert "\n" not in str(caught.value)


def test_merged_weights_have_the_plain_names_and_the_adapted_logits(folder: str) -> None:
    base = load_hf_causal(folder, "fp32")
    hf = adapted(folder)
    expected = logits(hf)
    plain, factors = split_parameters(hf)
    assert {name: p.shape for name, p in plain.items()} == {name: p.shape for name, p in base.named_parameters()}
    whole = {name: merged(p, factors[name]) if name in factors else p for name, p in plain.items()}
    before = dict(base.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in plain.items()), "the base is as it was"
    assert (expected - logits(base)).abs().max() > 0.1
    base.load_state_dict(whole, strict=False)
    torch.testing.assert_close(logits(base), expected, rtol=1e-5, atol=1e-5)


def test_merging_in_bf16_rounds_once(folder: str) -> None:
    plain, factors = split_parameters(adapted(folder, dtype="bf16"))
    name = "model.layers.0.mlp.up_proj.weight"
    one = factors[name]
    exact = plain[name].double() + 6.0 / 4 * (one.b.double() @ one.a.double())
    assert merged(plain[name], one).dtype == torch.bfloat16
    assert torch.equal(merged(plain[name], one), exact.to(torch.bfloat16))


def test_off_is_the_base_bit_for_bit_and_on_comes_back(folder: str) -> None:
    hf = adapted(folder)
    expected, trained = logits(hf), {name for name, p in hf.named_parameters() if p.requires_grad}
    with adapters_off(hf):
        assert torch.equal(logits(hf), logits(load_hf_causal(folder, "fp32")))
    assert torch.equal(logits(hf), expected)
    with pytest.raises(RuntimeError, match="in the middle"), adapters_off(hf):
        raise RuntimeError("in the middle")
    assert torch.equal(logits(hf), expected)
    assert {name for name, p in hf.named_parameters() if p.requires_grad} == trained
    plain = load_hf_causal(folder, "fp32")
    with adapters_off(plain):
        assert torch.equal(logits(plain), logits(load_hf_causal(folder, "fp32")))


def test_packed_sequences_go_through_the_adapters_too(folder: str) -> None:
    ids, lengths = torch.tensor([3, 4, 5, 6, 9, 11, 7]), torch.tensor([4, 3])
    found = []
    for layout in ("packed", "padded"):
        model = load_causal(folder, "fp32", layout)  # type: ignore[arg-type]
        add_lora(model, LORA, 5)
        plain = model(ids, lengths, torch.ones(7, dtype=torch.bool), 1.0, False)[0]
        learn(model.hf)
        adapted = model(ids, lengths, torch.ones(7, dtype=torch.bool), 1.0, False)[0]
        with torch.no_grad(), adapters_off(model.hf):
            assert torch.equal(model(ids, lengths, torch.ones(7, dtype=torch.bool), 1.0, False)[0], plain)
        assert (adapted - plain).abs().max() > 0.1
        found.append(adapted)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_merged_weight_by_the_chain_rule(folder: str) -> None:
    # W' = W + s B A: dL/dB = s dL/dW' A^T and dL/dA = s B^T dL/dW', with dL/dW' from a plain model that has W'.
    hf = adapted(folder)
    plain, factors = split_parameters(hf)
    whole = load_hf_causal(folder, "fp32")
    whole.load_state_dict({name: merged(plain[name], one) for name, one in factors.items()}, strict=False)
    for model in (hf, whole):
        torch.log_softmax(model(input_ids=IDS).logits, -1)[0, :-1].gather(1, IDS[0, 1:, None]).sum().backward()
    dense = dict(whole.named_parameters())
    for name, one in factors.items():
        gradient = dense[name].grad
        torch.testing.assert_close(one.b.grad, 1.5 * gradient @ one.a.T, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.a.grad, 1.5 * one.b.T @ gradient, rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for name, p in hf.named_parameters() if ".lora_" not in name)


@pytest.fixture
def saved(folder: str, tmp_path: Path) -> Path:
    hf = adapted(folder)
    write_adapter(tmp_path / "adapter", folder, hf, split_parameters(hf)[1])
    return tmp_path / "adapter"


def test_an_adapter_folder_loads_merged_and_in_plain_peft(folder: str, saved: Path) -> None:
    expected = logits(adapted(folder))
    names = ["adapter_config.json", "adapter_model.safetensors", "base_model.json"]
    assert sorted(path.name for path in saved.iterdir()) == names
    ours = load_hf_causal(str(saved), "fp32")
    torch.testing.assert_close(logits(ours), expected, rtol=1e-5, atol=1e-5)
    assert dict(ours.named_parameters()).keys() == dict(load_hf_causal(folder, "fp32").named_parameters()).keys()
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), saved)
    torch.testing.assert_close(logits(theirs), expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_belongs_to_the_weights_it_was_trained_on(folder: str, saved: Path, tmp_path: Path) -> None:
    expected = logits(load_hf_causal(str(saved), "fp32"))

    def based_on(base: Path) -> Any:
        path = saved / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}))
        return load_hf_causal(str(saved), "fp32")

    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    (moved / "notes.txt").write_text("beside the weights")
    assert torch.equal(logits(based_on(moved)), expected)
    other = tmp_path / "other"
    save_llama(other, tied=True, seed=1)
    with pytest.raises(DataError, match="other' has other weights than those it was trained on") as caught:
        based_on(other)
    assert "\n" not in str(caught.value) and str(saved) in str(caught.value)
    (saved / "base_model.json").write_text("{}")
    with pytest.raises(DataError, match="not a PEFT adapter folder"):
        based_on(moved)
    (saved / "base_model.json").unlink()
    based_on(other)


def test_the_tokenizer_beside_an_adapter_loads(saved: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(saved)
    assert load_tokenizer(str(saved)).get_vocab() == tokenizer.get_vocab()


def test_a_bf16_adapter_loads_as_the_merged_weights(folder: str, tmp_path: Path) -> None:
    hf = adapted(folder, dtype="bf16")
    plain, factors = split_parameters(hf)
    write_adapter(tmp_path, folder, hf, factors)
    loaded = dict(load_hf_causal(str(tmp_path), "bf16").named_parameters())
    assert all(torch.equal(loaded[name], merged(plain[name], one)) for name, one in factors.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model_name_or_path": "/no/such/base"}, "base model '/no/such/base' is no local model folder"),
        ({"base_model_name_or_path": "org/name"}, "base model 'org/name' is no local model folder"),
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"use_rslora": True}, "use_rslora=True is not supported"),
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=.* is not supported"),
        ({"r": 0}, "not a PEFT adapter folder"),
        ({"lora_alpha": None}, "not a PEFT adapter folder"),
    ],
)
def test_an_adapter_that_would_be_merged_wrongly_is_one_clear_line(
    saved: Path, change: dict[str, Any], message: str
) -> None:
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message) as caught:
        load_hf_causal(str(saved), "fp32")
    assert "\n" not in str(caught.value) and str(saved) in str(caught.value)


def test_broken_adapter_files_are_one_clear_line(folder: str, saved: Path, tmp_path: Path) -> None:
    weights = saved / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    for changed, message in [
        ({key: t for key, t in tensors.items() if key != first}, "has no A"),
        (tensors | {first: tensors[first][:, :-1].contiguous()}, "does not fit the base model"),
        (tensors | {"base_model.model.lm_head.weight": tensors[first].clone()}, "has no A"),
        ({}, "something else"),
    ]:
        save_file(changed, weights, metadata={"format": "pt"})
        with pytest.raises(DataError, match=message):
            load_hf_causal(str(saved), "fp32")
    weights.write_bytes(b"no safetensors")
    with pytest.raises(DataError, match="not a PEFT adapter folder"):
        load_hf_causal(str(saved), "fp32")
    weights.unlink()
    with pytest.raises(DataError, match="not a PEFT adapter folder"):
        load_hf_causal(str(saved), "fp32")
