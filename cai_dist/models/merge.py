"""Adapters made into a whole model: a folder that loads everywhere, without PEFT and without the base beside it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cai_dist.config.training import Dtype
from cai_dist.errors import ConfigError, DataError
from cai_dist.models.adapter import read_adapters
from cai_dist.models.export import save_model
from cai_dist.models.load import copy_tokenizer, has_scalar_head, load_config, load_hf_causal, load_hf_scalar
from cai_dist.models.tensors import TORCH_DTYPES
from cai_dist.tracking.atomic import remove_leftovers, staging_dir

NOTE = "constitution.json"
"""Beside a trained model: under which constitution it was made."""


@dataclass(frozen=True)
class MergedModel:
    """What `merge_to` has written: the transformers class, the type of its weights, the model underneath and how many
    adapters were merged into it."""

    architecture: str
    dtype: Dtype
    base: str
    adapters: int


def merge_to(source: str, target: Path, dtype: Dtype | None = None) -> MergedModel:
    """Write the model that the adapter folder `source` stands for into the new folder `target`: weights, config.json,
    generation_config.json and tokenizer; of a preference model with its scalar head.

    `dtype` None: the base's own (fp32 for one that is neither fp32 nor bf16). Sums are made in fp32 and rounded once.
    Raises ConfigError for a `target` that is there, DataError for a `source` that cannot be merged.
    """
    if target.exists():
        raise ConfigError(f"{target}: is there already and is not written over; give a new folder")
    base, adapters = read_adapters(source)
    if not adapters:
        raise DataError(f"{source}: {_no_adapter(source)}")
    own: Dtype = "bf16" if getattr(load_config(base), "dtype", None) == torch.bfloat16 else "fp32"
    wanted = dtype or own
    load = load_hf_scalar if has_scalar_head(source) else load_hf_causal
    # In a wider type than the one that is wanted nothing is rounded before the sum.
    hf = load(source, wanted if wanted == own else "fp32").to(TORCH_DTYPES[wanted])
    remove_leftovers(target)
    with staging_dir(target) as temporary:
        save_model(hf, temporary)
        _copy_beside([*(adapter.folder for adapter in reversed(adapters)), base], temporary)
    return MergedModel(type(hf).__name__, wanted, base, len(adapters))


def _no_adapter(source: str) -> str:
    if not Path(source).is_dir():
        return "no such folder; give that of an adapter, or of a run"
    if (Path(source) / "config.json").is_file():
        return "holds a whole model already; there is nothing to merge"
    return "holds no adapter_config.json; give the folder of an adapter, or of a run"


def _copy_beside(folders: list[str], target: Path) -> None:
    """Tokenizer and note of the first folder that has them: that of the last training first."""
    for folder in folders:
        if any((Path(folder) / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
            copy_tokenizer(folder, target)
            break
    noted: Any = next((Path(folder) / NOTE for folder in folders if (Path(folder) / NOTE).is_file()), None)
    if noted is not None:
        shutil.copyfile(noted, target / NOTE)
