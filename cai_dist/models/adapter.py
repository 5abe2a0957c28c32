"""Adapter folders in PEFT's layout: written without the base model, read by merging into it.

`adapter_config.json` says what kind of adapter and which base, `adapter_model.safetensors` holds A and B and, of a
preference model, its scalar head; `base_model.json`, a file of our own that PEFT does not look at, holds the hash of
the base's weights. A base may be an adapter folder itself: one stage has trained on what another one wrote. Only plain
LoRA on linear layers is read; any variant that computes something else is refused, since merging it would be wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cai_dist.errors import DataError
from cai_dist.models.lora import ADAPTER, LoraFactors, merged
from cai_dist.models.partition import Partition, change, full_shape, put
from cai_dist.tracking.atomic import sha256_file, sha256_json, write_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BASE_FILE = "base_model.json"
HEAD = "score.weight"
"""Name of the scalar head's weight in a sequence-classification model."""
_PREFIX = "base_model.model."
_DEEPEST = 16
"""Adapters on adapters; more are a circle."""
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], ["score"], ["classifier", "score"], None),
    "trainable_token_indices": ([], None),
}
"""Settings of an adapter and what they are in plain LoRA (the last value is that of an absent key)."""


@dataclass(frozen=True)
class Adapter:
    """An adapter as read from `folder`; `factors` by the name of the weight that they change in the base, `head` [1, H]
    the weight of a scalar head that was trained with them."""

    folder: str
    base: str
    factors: dict[str, LoraFactors]
    head: Tensor | None = None


def write_adapter(
    folder: Path, base: str, hf: Any, factors: Mapping[str, LoraFactors], head: Tensor | None = None
) -> None:
    """Write the adapter of `hf` with its whole `factors` and its scalar head [1, H], if it has one; `base` is the
    folder or hub name of the model under it."""
    config = hf.peft_config[ADAPTER]
    settings = {
        "base_model_name_or_path": str(Path(base).absolute()) if Path(base).is_dir() else base,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "peft_type": "LORA",
        "r": config.r,
        "target_modules": sorted(config.target_modules),
        "task_type": "CAUSAL_LM" if head is None else "SEQ_CLS",
        **({} if head is None else {"modules_to_save": ["score"]}),
    }
    tensors: dict[str, Tensor] = {}
    for name, one in factors.items():
        layer = _PREFIX + name.removesuffix(".weight")
        tensors[f"{layer}.lora_A.weight"] = one.a.detach().cpu().contiguous()
        tensors[f"{layer}.lora_B.weight"] = one.b.detach().cpu().contiguous()
    if head is not None:
        tensors[_PREFIX + HEAD] = head.detach().cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    if Path(base).is_dir():
        write_json(folder / BASE_FILE, {"weights_sha256": weights_sha256(Path(base))})
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def weights_sha256(model: Path) -> str:
    """Hex SHA-256 of the names and contents of a model folder's weight files, whatever else lies beside them."""
    return sha256_json({path.name: sha256_file(path) for path in model.glob("*.safetensors")})


def base_of(source: str) -> str:
    """The plain model under `source`: its base, the base's base, ...; `source` itself where it is no adapter folder.
    No weights are read. Raises DataError."""
    found = source
    for _ in range(_DEEPEST):
        if not (Path(found) / CONFIG_FILE).is_file():
            return found
        if any(Path(found).glob("model*.safetensors")):
            raise DataError(f"{found!r} holds an adapter and a whole model; take {CONFIG_FILE} away, or the model")
        try:
            base = json.loads((Path(found) / CONFIG_FILE).read_text("utf-8"))["base_model_name_or_path"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(found, error) from error
        found = str(base)
    raise DataError(f"adapter {source}: more than {_DEEPEST} adapters on each other; do they name each other as base?")


def read_adapters(source: str) -> tuple[str, tuple[Adapter, ...]]:
    """The plain model under `source`, and the adapters on it in the order in which they are merged; none where `source`
    is no adapter folder.

    Raises DataError for an adapter that cannot be used, and for a base with other weights than the adapter was trained
    on (an adapter that others wrote does not say: any base of its shape is taken).
    """
    base, found = base_of(source), []
    folder = source
    while folder != base:
        found.append(_read_adapter(folder))
        folder = found[-1].base
    return base, tuple(reversed(found))


def _unreadable(source: str, error: Exception) -> DataError:
    line = " ".join(str(error).split())[:200]
    return DataError(f"adapter {source}: not a PEFT adapter folder: {type(error).__name__}: {line}")


def _read_adapter(source: str) -> Adapter:
    folder = Path(source)
    try:
        settings = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        tensors = load_file(folder / WEIGHTS_FILE)
        for key, allowed in _PLAIN.items():
            if settings.get(key, allowed[-1]) not in allowed:
                raise DataError(f"adapter {source}: {key}={settings[key]!r} is not supported; only plain LoRA is")
        base, scaling = str(settings["base_model_name_or_path"]), float(settings["lora_alpha"]) / int(settings["r"])
        noted = folder / BASE_FILE
        expected = json.loads(noted.read_text("utf-8"))["weights_sha256"] if noted.is_file() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, SafetensorError) as error:
        if isinstance(error, DataError):
            raise
        raise _unreadable(source, error) from error
    if not any((Path(base) / name).is_file() for name in ("config.json", CONFIG_FILE)):
        raise DataError(
            f"adapter {source}: its base model {base!r} is no local model folder; put the base there or correct "
            f"base_model_name_or_path in {CONFIG_FILE}"
        )
    if expected is not None and weights_sha256(Path(base)) != expected:
        raise DataError(
            f"adapter {source}: its base model {base!r} has other weights than those it was trained on "
            f"({BASE_FILE}); correct base_model_name_or_path in {CONFIG_FILE}"
        )
    head = tensors.pop(_PREFIX + HEAD, None) if settings.get("modules_to_save") else None
    return Adapter(source, base, _factors(source, tensors, scaling), head)


def merge_adapter(hf: Any, adapter: Adapter, partition: Partition | None = None) -> None:
    """Add the adapter to the weights of its freshly loaded base, in place, and put its scalar head there; each rank of
    a `partition` to its part. Raises DataError where they do not fit."""
    parameters = dict(hf.named_parameters())
    if adapter.head is not None:
        if HEAD not in parameters or full_shape(parameters[HEAD]) != tuple(adapter.head.shape):
            raise DataError(
                f"adapter {adapter.folder}: it has a scalar head {list(adapter.head.shape)}, which {type(hf).__name__} "
                "has not; it is the adapter of a preference model"
            )
        put(parameters[HEAD], adapter.head, partition)
    for name, factors in adapter.factors.items():
        weight = parameters.get(name)
        shape = (factors.b.shape[0], factors.a.shape[1])
        if weight is None or full_shape(weight) != shape:
            raise DataError(
                f"adapter {adapter.folder}: {name} {list(shape)} does not fit the base model {adapter.base}"
            )
        change(weight, partial(_with_adapter, factors), partition)


def _with_adapter(factors: LoraFactors, part: Tensor, start: int) -> Tensor:
    return merged(part, factors, start)


def _factors(source: str, tensors: Mapping[str, Tensor], scaling: float) -> dict[str, LoraFactors]:
    layers = {key.removeprefix(_PREFIX).rpartition(".lora_")[0] for key in tensors}
    factors = {}
    for layer in sorted(layers):
        a, b = (tensors.get(f"{_PREFIX}{layer}.lora_{side}.weight") for side in "AB")
        if a is None or b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
            raise DataError(f"adapter {source}: {WEIGHTS_FILE} has no A [r, in] and B [out, r] for {layer!r}")
        factors[f"{layer}.weight"] = LoraFactors(a, b, scaling)
    if not factors or len(tensors) != 2 * len(factors):
        raise DataError(f"adapter {source}: {WEIGHTS_FILE} holds something else than A and B of linear layers")
    return factors
