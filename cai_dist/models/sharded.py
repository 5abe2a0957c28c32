"""Models that are born cut: built under ZeRO-3, each rank copying its slice of every tensor out of the files.

No rank ever holds more than its share of the model and one whole tensor (of a mixture of experts: the experts of a
layer). The names in the files, conversions to those of the model (transformers' `conversion_mapping`) and what is
missing are transformers' own business: its loader is given a stand-in for the model that takes slices.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.initialization import no_init_weights
from transformers.modeling_utils import LoadStateDictConfig

from cai_dist.errors import DataError
from cai_dist.models.partition import Partition, full_shape, held, put

_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"


def load_partitioned(
    auto: Any, source: str, dtype: torch.dtype, partition: Partition, **changes: Any
) -> tuple[Any, dict[str, Any]]:
    """A transformers model of the class that `auto` finds, in evaluation mode, cut over the ranks of `partition`, and
    what transformers says about the loading (`missing_keys`, `mismatched_keys`, ...). Collective.

    `changes` are settings of its configuration. Raises DataError, and what transformers raises.
    """
    folder = _local(source)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, **changes)
    config.name_or_path = source
    with no_init_weights(), partition.construction():
        hf = auto.from_config(config, dtype=dtype, trust_remote_code=False)
    hf.eval()
    _fill_buffers(hf)
    taker: Any = _Taker(hf, partition)
    conversions: Any = get_model_conversion_mapping(hf)
    with _reading_in_turn(), _opened(folder) as tensors:
        settings = LoadStateDictConfig(weight_mapping=conversions)
        info, _ = convert_and_load_state_dict_in_model(model=taker, state_dict=dict(tensors), load_config=settings)
    hf._weight_conversions = taker._weight_conversions  # for the way back, when the model is saved
    found: dict[str, Any] = info.to_dict()
    found["missing_keys"] = _tie(hf, set(found["missing_keys"]), partition)
    if hf.can_generate():
        hf.generation_config = _generation_config(source)
    return hf, found


def _fill_buffers(hf: Any) -> None:
    """Compute what is in no file (frequencies, positions) as `from_pretrained` does: in full precision, and rounded
    where the buffer is half. Modules alone that have no parameters of their own."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for module in hf.modules():
            if module._non_persistent_buffers_set and not module._parameters:
                hf._init_weights(module)


@dataclass(frozen=True)
class _Outline:
    """Stands for a tensor where its shape is looked at. It is of no type: what is in a file is cast slice by slice."""

    shape: torch.Size
    dtype: None = None


class _Taker:
    """Stands for a model where transformers puts the tensors of files: this rank's part of each is copied."""

    def __init__(self, hf: Any, partition: Partition) -> None:
        self._hf, self._partition = hf, partition
        self.config, self.base_model_prefix = hf.config, hf.base_model_prefix
        self._weight_conversions: Any = None

    def state_dict(self) -> dict[str, _Outline]:
        """Names and shapes of all that files may hold."""
        entries: Mapping[str, Tensor] = self._hf.state_dict(keep_vars=True)
        return {name: _outline(tensor) for name, tensor in entries.items()}

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Those of the model."""
        yield from self._hf.named_buffers()

    def get_submodule(self, path: str) -> _Place:
        """Stands for a module of the model."""
        return _Place(self._hf.get_submodule(path), self._partition)


class _Place:
    """Stands for a module: its parameters seem whole, and setting one copies this rank's part."""

    def __init__(self, module: nn.Module, partition: Partition) -> None:
        vars(self).update(_module=module, _partition=partition, _buffers=module._buffers)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return _outline(value) if isinstance(value, Tensor) else value

    def __setattr__(self, name: str, value: Any) -> None:
        target = getattr(self._module, name)
        if isinstance(target, nn.Parameter):
            put(target, value, self._partition)
        else:
            target.copy_(value)


def _outline(tensor: Tensor) -> _Outline:
    return _Outline(torch.Size(full_shape(tensor)))


def _local(source: str) -> Path:
    """The folder with the weights; those of a hub name are fetched first."""
    if Path(source).is_dir():
        return Path(source)
    return Path(snapshot_download(source, allow_patterns=["*.safetensors", "*.safetensors.index.json", "*.json"]))


@contextmanager
def _opened(folder: Path) -> Iterator[dict[str, Any]]:
    """Name -> tensor of a model folder, not read yet: a file is mapped, a tensor read when it is asked for."""
    files = [folder / _WEIGHTS]
    if (folder / _INDEX).is_file():
        index = json.loads((folder / _INDEX).read_text("utf-8"))
        files = sorted({folder / name for name in index["weight_map"].values()})
    if missing := next((file for file in files if not file.is_file()), None):
        raise DataError(f"{folder} has no {missing.name}: give a model folder with all its safetensors files")
    with ExitStack() as stack:
        found: dict[str, Any] = {}
        for file in files:
            handle = stack.enter_context(safe_open(file, framework="pt"))
            found |= {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - no mapping
        yield found


@contextmanager
def _reading_in_turn() -> Iterator[None]:
    """Transformers reads one tensor after the other, when it is needed, not all at once in threads."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _tie(hf: Any, missing: set[str], partition: Partition) -> set[str]:
    """Tie what the architecture ties, as `from_pretrained` does: to the one of two that was in the files, and not at
    all where both were, with other numbers. Returns what is missing after that."""
    for target, source in list(hf.all_tied_weights_keys.items()):
        if target not in missing and source not in missing:
            two = hf.get_parameter(source), hf.get_parameter(target)
            here = [held(one, partition.rank, partition.ranks) for one in two]
            if not partition.everywhere(torch.equal(*here)):
                hf.all_tied_weights_keys.pop(target)
                continue
        elif source in missing and target not in missing:
            target, source = source, target
        parent, _, name = target.rpartition(".")
        setattr(hf.get_submodule(parent), name, hf.get_parameter(source))
        if source not in missing:
            missing.discard(target)
    return missing


def _generation_config(source: str) -> Any:
    try:
        return GenerationConfig.from_pretrained(source)
    except OSError:  # no such file: what config.json says, as in `from_pretrained`
        return GenerationConfig.from_pretrained(source, config_file_name="config.json", _from_model_config=True)
