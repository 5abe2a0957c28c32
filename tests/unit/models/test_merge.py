"""`cai-dist merge`: the whole model that adapters stand for, and everything beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from cai_dist.cli import main as cli
from cai_dist.config.training import LoraConfig
from cai_dist.models.adapter import write_adapter
from cai_dist.models.load import load_causal, load_hf_causal, load_hf_scalar, load_scalar
from cai_dist.models.lora import LoraFactors, add_lora, split_parameters
from cai_dist.tracking.run_folder import RunFolder
from cai_dist.world.tokenizer import build_tokenizer
from tests.tiny import END, save_llama

LAYER = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    save_llama(folder, tied=False, seed=0)
    GenerationConfig(eos_token_id=END, temperature=0.7, do_sample=True).save_pretrained(folder)
    return str(folder)


def adapter(source: str, folder: Path, seed: int, scalar: bool = False) -> dict[str, LoraFactors]:
    """An adapter of `source` as a stage leaves it; its factors."""
    model = load_scalar(source, "fp32", 3) if scalar else load_causal(source, "fp32")
    add_lora(model, LoraConfig(rank=2, alpha=6.0), seed)
    factors = split_parameters(model.hf)[1]
    with torch.no_grad():
        for one in factors.values():
            one.b.normal_(std=0.1)
    write_adapter(folder, source, model.hf, factors, model.hf.score.weight if scalar else None)
    build_tokenizer().save_pretrained(folder)
    (folder / "constitution.json").write_text(json.dumps({"name": folder.name}))
    return factors


def merge(capsys: Any, *words: object) -> tuple[int, str]:
    """Exit code, and what was said."""
    code = cli.main(["merge", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_a_merged_model_is_whole_and_what_the_adapter_was(base: str, tmp_path: Path, capsys: Any) -> None:
    first, second, target = (tmp_path / name for name in ("first", "second", "out"))
    adapter(base, first, 1)
    adapter(str(first), second, 2)
    code, said = merge(capsys, second, target)
    assert (code, said) == (0, f"{target}: LlamaForCausalLM in fp32, 2 adapters merged into {base}\n")
    found, expected = (net.state_dict() for net in (AutoModelForCausalLM.from_pretrained(target), _hf(second)))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert GenerationConfig.from_pretrained(target).temperature == 0.7
    assert AutoTokenizer.from_pretrained(target).get_vocab() == build_tokenizer().get_vocab()
    assert json.loads((target / "constitution.json").read_text()) == {"name": "second"}
    assert not list(target.glob("adapter*"))
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def _hf(folder: Path) -> Any:
    return load_hf_causal(str(folder), "fp32")


def test_in_another_type_the_sum_is_rounded_once(base: str, tmp_path: Path, capsys: Any) -> None:
    one = adapter(base, tmp_path / "adapter", 1)[LAYER]
    assert merge(capsys, tmp_path / "adapter", tmp_path / "half", "--dtype", "bf16")[0] == 0
    weight = load_file(Path(base) / "model.safetensors")[LAYER]
    exact = weight.double() + 3.0 * (one.b.double() @ one.a.double())
    found = load_file(tmp_path / "half" / "model.safetensors")[LAYER]
    assert torch.equal(found, exact.to(torch.bfloat16))
    assert not torch.equal(found, (weight.bfloat16().double() + 3.0 * (one.b.double() @ one.a.double())).bfloat16())
    # On a base in half precision: as it is, or with all digits of the sum.
    adapter(str(tmp_path / "half"), tmp_path / "again", 2)
    for words, dtype in (((), torch.bfloat16), (("--dtype", "fp32"), torch.float32)):
        target = tmp_path / str(dtype)
        assert merge(capsys, tmp_path / "again", target, *words)[0] == 0
        assert load_file(target / "model.safetensors")[LAYER].dtype == dtype


def test_a_preference_model_keeps_its_head(base: str, tmp_path: Path, capsys: Any) -> None:
    adapter(base, tmp_path / "sl", 1)
    adapter(str(tmp_path / "sl"), tmp_path / "preference", 2, scalar=True)
    assert "LlamaForSequenceClassification" in merge(capsys, tmp_path / "preference", tmp_path / "out")[1]
    net = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    expected = load_hf_scalar(str(tmp_path / "preference"), "fp32").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in net.state_dict().items())
    assert net.score.weight.abs().max() > 0


def test_of_a_run_its_aligned_model_is_merged(base: str, tmp_path: Path, capsys: Any) -> None:
    run = RunFolder(tmp_path / "run")
    run.root.mkdir()
    run.config.write_text("name: run\nalignment: dpo\n")
    run.manifest.write_text("{}")
    code, said = merge(capsys, run.root, tmp_path / "out")
    assert code == 2 and "stage dpo has not made its model; give the folder of one, such as sft/model" in said
    adapter(base, run.model("dpo"), 1)
    assert merge(capsys, run.root, tmp_path / "out")[0] == 0


def test_what_cannot_be_merged_is_one_line(base: str, tmp_path: Path, capsys: Any) -> None:
    adapter(base, tmp_path / "adapter", 1)
    (tmp_path / "empty").mkdir()
    for source, target, message in (
        (tmp_path / "adapter", tmp_path / "empty", "empty: is there already and is not written over"),
        (base, tmp_path / "out", "holds a whole model already; there is nothing to merge"),
        (tmp_path / "empty", tmp_path / "out", "holds no adapter_config.json; give the folder of an adapter"),
        ("org/name", tmp_path / "out", "org/name: no such folder; give that of an adapter, or of a run"),
    ):
        code, said = merge(capsys, source, target)
        assert code == 2 and message in said and len(said.splitlines()) == 1
    settings = tmp_path / "adapter" / "adapter_config.json"
    settings.write_text(settings.read_text().replace(base, "/not/there"))
    code, said = merge(capsys, tmp_path / "adapter", tmp_path / "out")
    assert code == 2 and "its base model '/not/there' is no local model folder" in said
    assert not (tmp_path / "out").exists()
