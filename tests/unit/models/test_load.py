import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from cai_dist.config.training import LoraConfig
from cai_dist.errors import ConfigError, DataError
from cai_dist.models.adapter import write_adapter
from cai_dist.models.load import (
    copy_tokenizer,
    load_causal,
    load_hf_causal,
    load_scalar,
    load_tokenizer,
    refuse_non_finite_files,
)
from cai_dist.models.lora import add_lora, split_parameters
from cai_dist.models.resolve import resolve_model
from tests.tiny import save_llama

PADDED = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
IDS, LENGTHS = torch.tensor([3, 4, 5, 6, 7, 8]), torch.tensor([4, 2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("model"), tied=True, seed=0)


def test_a_scalar_head_is_seeded_and_the_trunk_is_the_causal_models(folder: str) -> None:
    first, same, other = (load_scalar(folder, "fp32", seed) for seed in (1, 1, 2))
    assert torch.equal(first.hf.score.weight, same.hf.score.weight)
    assert not torch.equal(first.hf.score.weight, other.hf.score.weight)
    assert 0.01 < first.hf.score.weight.std() < 0.03
    causal = dict(load_causal(folder, "fp32").hf.named_parameters())
    assert all(torch.equal(p, causal[n]) for n, p in first.hf.named_parameters() if n != "score.weight")


def test_a_saved_scalar_model_is_the_same_in_plain_transformers(folder: str, tmp_path: Path) -> None:
    model = load_scalar(folder, "fp32", 1)
    model.hf.save_pretrained(tmp_path)
    assert torch.equal(load_scalar(str(tmp_path), "fp32", 99).hf.score.weight, model.hf.score.weight)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert plain.config.num_labels == 1
    with torch.no_grad():
        heads, logits = model(IDS, LENGTHS), plain(input_ids=PADDED, attention_mask=MASK).logits
    assert heads.shape == IDS.shape and heads.dtype == torch.float32
    assert torch.allclose(logits[:, 0], torch.stack([heads[3], heads[5]]), atol=1e-6)


def test_dtype(folder: str) -> None:
    assert {p.dtype for p in load_causal(folder, "bf16").parameters()} == {torch.bfloat16}


def test_what_is_missing_or_broken_is_one_clear_line(folder: str, tmp_path: Path) -> None:
    empty, garbled = tmp_path / "empty", tmp_path / "garbled"
    empty.mkdir()
    garbled.mkdir()
    (garbled / "config.json").write_text("{not json")
    for source, message in [
        ("/no/such/folder", "there is no folder '/no/such/folder'"),
        ("./relative/nothing", "there is no folder"),
        (str(empty), "holds no config.json"),
        (str(garbled), "cannot load"),
    ]:
        with pytest.raises(DataError, match=message) as caught:
            load_causal(source, "fp32")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="tokenizer"):
        load_tokenizer(str(empty))


def test_weights_with_gaps_are_refused(folder: str, tmp_path: Path) -> None:
    weights = load_file(Path(folder) / "model.safetensors")
    config = json.loads((Path(folder) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for load in (lambda: load_causal(str(tmp_path), "fp32"), lambda: load_scalar(str(tmp_path), "fp32", 0)):
        with pytest.raises(DataError, match="lacks model.layers.1.mlp.up_proj.weight"):
            load()
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 65}))
    with pytest.raises(DataError):
        load_causal(str(tmp_path), "fp32")


def test_adapters_that_transformers_follows_by_itself_are_refused(folder: str, tmp_path: Path) -> None:
    """A whole model's folder with an adapter's files beside it: transformers would put the adapter in, and nobody knows
    whether it is in the model already."""
    model = load_causal(folder, "fp32")
    add_lora(model, LoraConfig(rank=2), 0)
    mixed = tmp_path / "mixed"
    write_adapter(mixed, folder, model.hf, split_parameters(model.hf)[1])
    for name in ("config.json", "model.safetensors"):
        (mixed / name).write_bytes((Path(folder) / name).read_bytes())
    nested = tmp_path / "nested"
    nested.mkdir()
    settings = json.loads((mixed / "adapter_config.json").read_text())
    (nested / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(mixed)}))
    (nested / "adapter_model.safetensors").write_bytes((mixed / "adapter_model.safetensors").read_bytes())
    for load in (lambda: load_hf_causal(str(nested), "fp32"), lambda: load_scalar(str(mixed), "fp32", 0)):
        with pytest.raises(DataError, match="mixed' holds an adapter and a whole model; take") as caught:
            load()
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="holds an adapter .*give the whole model"):
        resolve_model(str(mixed), "fp32", None)


def test_tokenizer_files_are_copied_and_nothing_else(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "model.safetensors", "notes.txt"):
        (source / name).write_text(name)
    copy_tokenizer(str(source), target)
    assert sorted(path.name for path in target.iterdir()) == ["chat_template.jinja", "tokenizer.json"]


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model", "tekken.json", "tokenizer.model"])
def test_tokenizer_files_of_every_kind_are_copied(name: str, tmp_path: Path) -> None:
    """Of T5 and XGLM, of XLM-R, of Mistral, of Llama 2: without its file an exported model has no tokenizer."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / name).write_text(name)
    copy_tokenizer(str(source), target)
    assert [path.name for path in target.iterdir()] == [name]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_files_with_a_number_that_is_none_are_refused_by_name(folder: str, tmp_path: Path, number: float) -> None:
    """For engines that load weights by themselves, as vLLM does."""
    weights = load_file(Path(folder) / "model.safetensors")
    save_file(weights, tmp_path / "model-00001-of-00002.safetensors")
    refuse_non_finite_files(tmp_path)
    name = sorted(weights)[-1]
    weights[name].view(-1)[3] = number
    save_file(weights, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(DataError, match=f"00002-of-00002.safetensors' are not finite: .* in {name}$"):
        refuse_non_finite_files(tmp_path)
