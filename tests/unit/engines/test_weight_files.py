"""The files of an exported model, written one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cai_dist.config.training import ExportConfig
from cai_dist.engines.training.weight_files import WeightFiles
from cai_dist.errors import CaiError
from cai_dist.models.tensors import spec_of
from cai_dist.workers.language import LanguageWorker
from tests.architectures import ARCHITECTURES
from tests.inprocess import build_worker
from tests.tiny import save_llama


def network(name: str) -> Any:
    return next(one for one in ARCHITECTURES if one.name == name).network()


def write(hf: Any, folder: Path, max_bytes: int, **kwargs: Any) -> WeightFiles:
    """All parameters of `hf`, a group at a time."""
    folder.mkdir(exist_ok=True)
    tensors = dict(hf.named_parameters())
    files = WeightFiles(hf, [spec_of(n, p) for n, p in tensors.items()], folder, max_bytes, **kwargs)
    for group in files.groups:
        files.add({name: tensors[name].detach() for name in group})
    files.close()
    return files


@pytest.mark.parametrize("name", ["Llama 3", "Mixtral"])
def test_files_are_those_of_transformers_a_layer_at_a_time(name: str, tmp_path: Path) -> None:
    hf = network(name)
    files = write(hf, tmp_path / "ours", 10**9)
    hf.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "ours/model.safetensors").read_bytes() == (tmp_path / "theirs/model.safetensors").read_bytes()
    assert len(files.groups) >= 4 and max(map(len, files.groups)) < sum(map(len, files.groups)) / 2


@pytest.mark.parametrize("name", ["Llama 3", "Mixtral"])
def test_no_file_is_larger_than_asked_and_all_together_are_the_model(name: str, tmp_path: Path) -> None:
    hf = network(name)
    write(hf, tmp_path, 10_000)
    hf.config.save_pretrained(tmp_path)
    found = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(found) > 3 and found[0] == f"model-00001-of-{len(found):05d}.safetensors"
    assert max(path.stat().st_size for path in tmp_path.glob("*.safetensors")) < 10_000 + 4000, (
        "with the head of a file"
    )
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == found
    assert index["metadata"]["total_size"] == sum(4 * p.numel() for p in hf.parameters())
    back = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(back[key], tensor) for key, tensor in hf.state_dict().items())


def test_what_waits_for_its_file_is_at_most_a_file_and_a_layer(tmp_path: Path) -> None:
    hf = network("Llama 3")
    tensors = dict(hf.named_parameters())
    files = WeightFiles(hf, [spec_of(n, p) for n, p in tensors.items()], tmp_path, 10_000)
    largest = max(sum(4 * tensors[name].numel() for name in group) for group in files.groups)
    for group in files.groups:
        files.add({name: tensors[name].detach() for name in group})
        assert sum(4 * tensor.numel() for tensor in files._waiting.values()) <= 10_000 + largest


def test_a_model_of_which_tensors_are_missing_is_not_done(tmp_path: Path) -> None:
    hf = network("Llama 3")
    files = WeightFiles(hf, [spec_of(n, p) for n, p in hf.named_parameters()], tmp_path, 10**9)
    with pytest.raises(CaiError, match="1 of 1 weight files unwritten"):
        files.close()


@pytest.mark.parametrize("zero", [0, 3])
def test_an_export_in_another_precision(zero: int, tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model", tied=True, seed=0)
    made = build_worker(LanguageWorker, source, zero=zero, export=ExportConfig(dtype="bf16", max_shard_gb=1e-4))
    made.export(str(tmp_path / "out"))
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    back, before = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "out", source))
    assert {p.dtype for p in back.parameters()} == {torch.bfloat16}
    assert all(torch.equal(back.state_dict()[key], tensor.bfloat16()) for key, tensor in before.state_dict().items())
