"""Models that are built cut over two ranks are those that are loaded whole, and no rank ever has all of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cai_dist.config.training import LoraConfig
from cai_dist.models.adapter import write_adapter
from cai_dist.models.load import load_causal, load_scalar
from cai_dist.models.lora import add_lora, split_parameters
from tests import born_cut
from tests.architectures import ARCHITECTURES
from tests.tiny import save_llama
from tests.two_ranks import on_two_ranks

KINDS_OF_ALL = ("Llama 3", "Mixtral", "GPT-2", "Gemma 2")
"""Plain, experts that files hold one by one, transposed layers, attention that is chosen at loading."""


def written(name: str, folder: Path) -> str:
    """The folder of one of the table's architectures."""
    target = folder / name.replace(" ", "-").replace("/", "-")
    next(one for one in ARCHITECTURES if one.name == name).network().save_pretrained(target)
    return str(target)


def adapted(base: str, folder: Path, scalar: bool = False) -> str:
    """The folder of a LoRA adapter that changes something, on the model in `base`; with a `scalar` head of its own."""
    model = load_scalar(base, "fp32", 3) if scalar else load_causal(base, "fp32")
    add_lora(model, LoraConfig(rank=2), 1)
    factors = split_parameters(model.hf)[1]
    with torch.no_grad():
        for one in factors.values():
            one.b.normal_(std=0.1)
    write_adapter(folder, base, model.hf, factors, model.hf.score.weight if scalar else None)
    return str(folder)


def untied_against_its_config(folder: Path) -> str:
    """A model whose config ties the output layer and whose file has another one: it stays untied."""
    save_llama(folder, tied=False, seed=4)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return str(folder)


def test_models_cut_at_birth_are_the_whole_ones(tmp_path: Path) -> None:
    tied = save_llama(tmp_path / "tied", tied=True, seed=1)
    untied = save_llama(tmp_path / "untied", tied=False, seed=2)
    load_scalar(tied, "fp32", 7).hf.save_pretrained(tmp_path / "scalar")
    shards = str(tmp_path / "shards")
    AutoModelForCausalLM.from_pretrained(tied).save_pretrained(shards, max_shard_size="60KB")
    jobs: list[dict[str, Any]] = [
        *({"name": name, "source": written(name, tmp_path)} for name in KINDS_OF_ALL),
        {"name": "tied", "source": tied},
        {"name": "untied against its config", "source": untied_against_its_config(tmp_path / "against")},
        {"name": "several files", "source": shards},
        {"name": "small ones whole", "source": untied, "threshold": 100},
        {"name": "half", "source": untied, "dtype": "bf16"},
        {"name": "new head", "source": tied, "kind": "scalar"},
        {"name": "saved head", "source": str(tmp_path / "scalar"), "kind": "scalar"},
        {"name": "language, tied", "source": tied, "kind": "language"},
        {"name": "language, untied", "source": untied, "kind": "language"},
        {"name": "merged adapter", "source": (adapter := adapted(untied, tmp_path / "adapter"))},
        {"name": "new head on an adapter", "source": adapter, "kind": "scalar"},
        {
            "name": "adapter and head on an adapter",
            "source": adapted(adapter, tmp_path / "two", True),
            "kind": "scalar",
        },
        {"name": "adapters", "source": untied, "lora": True},
        {"name": "adapters and head", "source": tied, "kind": "scalar", "lora": True},
    ]
    for job in jobs:
        if job["name"] in ("small ones whole", "adapters", "adapters and head"):
            job["share"] = 1.0
    first, second = on_two_ranks(born_cut.compare, jobs=jobs, folder=str(tmp_path))
    assert first == second == {job["name"]: "same" for job in jobs}


def test_weights_that_are_cut_decay_as_whole_ones_do(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model", tied=False, seed=2)
    cut, whole = on_two_ranks(born_cut.decaying, source=source, folder=str(tmp_path))[0]
    assert cut == whole and any("proj" in name for name in cut) and not any("norm" in name for name in cut)


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_architecture_is_cut_at_birth_or_refused(dtype: str, tmp_path: Path) -> None:
    sources = {one.name: written(one.name, tmp_path) for one in ARCHITECTURES}
    jobs = [
        {"name": f"{name.replace('/', '-')} {kind}", "source": source, "kind": kind, "dtype": dtype}
        for name, source in sources.items()
        for kind in ("causal", "scalar")
    ]
    found = on_two_ranks(born_cut.compare, jobs=jobs, folder=str(tmp_path))[0]
    assert set(found.values()) == {"same", "refused"}
    # ModernBERT's decoder is refused in every layout; the others where they have no class with a scalar head. In half
    # precision transformers itself cannot run the Mambas on a CPU.
    never = ["ModernBERT decoder causal", *(["Mamba causal", "Mamba 2 causal"] if dtype == "bf16" else [])]
    assert [name for name, said in found.items() if said == "refused" and name.endswith("causal")] == never


def broken(folder: Path, change: Any) -> str:
    """A model folder with changed weights."""
    save_llama(folder, tied=False, seed=3)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_what_is_wrong_with_a_folder_is_said_on_all_ranks(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][-1, -1] = float("nan")  # in the part of the second rank

    sources = [
        broken(tmp_path / "nan", spoil),
        broken(tmp_path / "missing", lambda tensors: tensors.pop(name)),
        broken(tmp_path / "shape", lambda tensors: tensors.update({name: torch.zeros(3, 3)})),
    ]
    ranks = on_two_ranks(born_cut.refusals, sources=sources, folder=str(tmp_path))
    for said, where in zip(ranks, ("the part of another rank", name), strict=True):
        assert f"NaN or infinite numbers in {where}" in said[0]
        assert f"lacks {name}" in said[1]
        assert f"has another shape for {name}" in said[2]
