"""A frozen base in 4 or 8 bits: the numbers of transformers' own bitsandbytes models, the memory that it is for, exact
gradients, and weights for everybody who asks for whole ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from cai_dist.config.training import LoraConfig
from cai_dist.errors import ConfigError
from cai_dist.models.load import load_causal, load_hf_causal, load_scalar
from cai_dist.models.lora import add_lora, lora_summary, split_parameters
from cai_dist.models.quantized import QuantizedLinear, quantize_trunk
from cai_dist.plan.roles import trained_elements
from cai_dist.plan.shapes import find_shape
from tests.tiny import END, VOCAB, plain_logprobs, save_llama

bitsandbytes = pytest.importorskip("bitsandbytes", reason='needs bitsandbytes: pip install -e ".[quant]"')
KINDS: Any = ("nf4", "int8")
IDS, LENGTHS = torch.arange(3, 40), torch.tensor([20, 17])
WANTED = torch.ones(37, dtype=torch.bool)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("model"), tied=False, seed=0, std=0.1)


def quantised(folder: str, kind: Any, dtype: Any = "fp32") -> Any:
    model = load_causal(folder, dtype)
    quantize_trunk(model, kind)
    return model


def logprobs(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(IDS, LENGTHS, WANTED, 1.0, False)[0]
    return found


def theirs(folder: str, kind: str) -> Any:
    """The model as transformers loads it with bitsandbytes."""
    four = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    settings = four if kind == "nf4" else BitsAndBytesConfig(load_in_8bit=True)
    net = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, device_map="cpu", dtype=torch.float32
    )
    # Where a CPU has bf16 products, bitsandbytes scores with other weights than it trains with.
    return net.train()


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_of_transformers_own_quantised_model(folder: str, kind: str) -> None:
    net = theirs(folder, kind)
    with torch.no_grad():
        rows = [plain_logprobs(net(input_ids=ids[None]).logits[0], ids) for ids in IDS.split(LENGTHS.tolist())]
    ours, base = logprobs(quantised(folder, kind)), logprobs(load_causal(folder, "fp32"))
    torch.testing.assert_close(ours, torch.cat(rows), rtol=0, atol=1e-4)
    assert (ours - base).abs().max() > 20 * (ours - torch.cat(rows)).abs().max(), "it is another model than the base"
    assert (ours - base).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_the_linear_layers_of_the_trunk_and_nothing_else(folder: str, kind: str) -> None:
    hf, base = quantised(folder, kind).hf, load_hf_causal(folder, "fp32")
    found = {name for name, module in hf.named_modules() if isinstance(module, QuantizedLinear)}
    assert found == {name for name, _ in base.named_modules() if name.endswith("_proj")} and len(found) == 14
    kept = dict(hf.named_parameters())
    assert all(torch.equal(p, kept[name]) for name, p in base.named_parameters() if "_proj" not in name)
    assert not [name for name in kept if "_proj" in name]
    scalar = load_scalar(folder, "fp32", 0)
    quantize_trunk(scalar, kind)
    assert isinstance(scalar.hf.get_submodule("model.layers.0.mlp.up_proj"), QuantizedLinear)
    assert not isinstance(scalar.hf.score, QuantizedLinear)


@pytest.mark.parametrize(("kind", "most"), [("nf4", 0.27), ("int8", 0.52)])
def test_memory_is_what_the_plan_counts(tmp_path: Path, kind: Any, most: float) -> None:
    """In bf16, of wide layers: bytes of everything that the modules hold."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=END,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    plain, model = load_causal(str(tmp_path), "bf16"), quantised(str(tmp_path), kind, "bf16")
    layers = [(a, b) for a, b in zip(plain.modules(), model.modules(), strict=True) if isinstance(b, QuantizedLinear)]
    before = sum(a.weight.nbytes for a, _ in layers)
    after = sum(held(layer) for _, layer in layers)
    assert 0.9 * most < after / before < most
    lora = LoraConfig(rank=2, quantization=kind)
    shape = find_shape(str(tmp_path), "test")
    counts = trained_elements(shape, lora, causal=True)
    add_lora(model, lora, 0)
    parameters = sum(p.nbytes for p in model.parameters())
    assert counts.nbytes(2) == pytest.approx(parameters + after, rel=0.02)
    assert counts.unpacked == 256 * 512


def held(layer: QuantizedLinear) -> int:
    """Bytes of codes and scales; not the tables of codes, which are the same however large the layer is."""
    scales = layer._scales
    parts = [layer.codes, scales] if layer.kind == "int8" else [layer.codes, scales.absmax, scales.state2.absmax]
    return sum(part.nbytes for part in parts)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_weights_that_the_codes_stand_for(folder: str, kind: str) -> None:
    """A plain model with these weights, and the same adapters on it, as a reference."""
    lora, found = LoraConfig(rank=2, alpha=6.0), []
    one = quantised(folder, kind)
    other = load_causal(folder, "fp32")
    with torch.no_grad():
        for name, module in one.hf.named_modules():
            if isinstance(module, QuantizedLinear):
                other.hf.get_submodule(name).weight.copy_(module.weight)
    for model in (one, other):
        add_lora(model, lora, 1)
        with torch.no_grad():
            for factors in split_parameters(model.hf)[1].values():
                factors.b.copy_(torch.randn(factors.b.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
        logprobs(model).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys() and len(found[0]) == 28
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_whole_weight_waits_for_the_backward_pass(folder: str, kind: str) -> None:
    model = quantised(folder, kind)
    add_lora(model, LoraConfig(rank=2), 0)
    head = model.hf.get_output_embeddings().weight.data_ptr()
    kept: list[torch.Size] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() != head:
            kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logprobs(model)
    shapes = {(64, 96), (96, 64), (64, 64)}
    assert kept and not [shape for shape in kept if tuple(shape) in shapes]


@pytest.mark.parametrize("kind", KINDS)
def test_scales_stay_precise_when_a_model_is_cast(folder: str, kind: str) -> None:
    model = quantised(folder, kind, "bf16")
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    before = [layer.weight for layer in layers]
    model.bfloat16()  # as DeepSpeed does
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, before, strict=True))
    assert all(weight.dtype == torch.bfloat16 for weight in before)
    model.to("cpu")
    assert torch.equal(layers[0].weight, before[0])


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_asks_for_the_plain_model_gets_whole_weights(folder: str, kind: str) -> None:
    base = load_hf_causal(folder, "fp32")
    model = quantised(folder, kind)
    for adapted in (False, True):
        if adapted:
            add_lora(model, LoraConfig(rank=2), 0)
        plain, factors = split_parameters(model.hf)
        assert len(factors) == (14 if adapted else 0)
        shapes = {name: (tuple(p.shape), p.dtype) for name, p in plain.items()}
        assert shapes == {name: (tuple(p.shape), p.dtype) for name, p in base.named_parameters()}
        assert [name for name, p in plain.items() if p.requires_grad] == ([] if adapted else list(_trained(model.hf)))
        up = plain["model.layers.0.mlp.up_proj.weight"].detach()
        original = base.get_submodule("model.layers.0.mlp.up_proj").weight
        assert 0 < (up - original).abs().max() < 0.3 * original.abs().max()
    assert lora_summary(model.hf).endswith(f", {kind} base")


def _trained(hf: Any) -> list[str]:
    return [name for name, p in hf.named_parameters() if p.requires_grad]


def test_weights_that_zero_3_has_cut_are_refused(folder: str) -> None:
    model = load_causal(folder, "fp32")
    model.hf.get_submodule("model.layers.1.mlp.up_proj").weight.ds_tensor = torch.zeros(1)
    with pytest.raises(ConfigError, match="lora.quantization=nf4: cannot be with zero: 3"):
        quantize_trunk(model, "nf4")
