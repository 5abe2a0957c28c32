"""Writing a model folder: file by file, whatever generation_config.json the model came with.

Transformers loads a generation configuration that contradicts itself with a warning and refuses to save it: many older
model folders (vicuna, Llama 2) name a temperature without `do_sample`, and so would train to the end and then not be
exported (transformers#29665).
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_SAMPLING: dict[str, float | None] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "top_k": 50,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""Settings that only sampling looks at, and the values that change nothing."""
_SUSPECTS = ("early_stopping", "length_penalty", "cache_implementation")
"""What transformers takes as invalid beside some other setting, apart from sampling."""
_KEPT = ("token_id", "_version", "_from_model_config")
"""Endings of what is never given up: the ids of special tokens, above all."""


def save_model(hf: Any, folder: Path) -> tuple[str, ...]:
    """Write weights, config.json and generation_config.json of a transformers model into `folder`. The generation
    configuration is repaired first, in place; returns what was changed in it."""
    repaired = repair_generation(hf.generation_config) if hf.can_generate() else ()
    hf.save_pretrained(folder)
    return repaired


def save_configs(hf: Any, folder: Path, dtype: str) -> None:
    """Write config.json and generation_config.json as `save_model` does, for weights in `dtype` ("float32")."""
    if hf.can_generate():
        repair_generation(hf.generation_config)
    with TemporaryDirectory(dir=folder) as beside:
        hf.save_pretrained(beside, state_dict={})
        for file in Path(beside).glob("*.json"):
            file.replace(folder / file.name)
    path = folder / "config.json"
    settings = json.loads(path.read_text("utf-8"))
    if settings.get("dtype") != dtype:
        path.write_text(json.dumps(settings | {"dtype": dtype}, indent=2, sort_keys=True) + "\n", "utf-8")


def repair_generation(generation: Any) -> tuple[str, ...]:
    """Make a `GenerationConfig` one that transformers saves, in place; returns each change as `key=value`.

    Sampling settings without `do_sample` mean sampling (temperature 0: greedy decoding, and they go). What is invalid
    after that is set to None, one setting after the other, until it is valid; never the ids of tokens.
    """
    changes: dict[str, Any] = {}

    def change(name: str, value: Any) -> None:
        setattr(generation, name, value)
        changes[name] = value

    if _valid(generation):
        return ()
    if not generation.do_sample and generation.temperature != 0 and _samples(generation):
        change("do_sample", True)
    elif not generation.do_sample:
        for name in _SAMPLING:
            if getattr(generation, name) is not None:
                change(name, None)
    if generation.pad_token_id is not None and generation.pad_token_id < 0:
        change("pad_token_id", None)
    others = [name for name in generation.to_diff_dict() if not name.endswith(_KEPT) and name not in changes]
    for name in (*_SUSPECTS, *generation.extra_output_flags, *others):
        if _valid(generation):
            break
        if getattr(generation, name) is not None:
            change(name, None)
    return tuple(f"{name}={value}" for name, value in changes.items())


def _samples(generation: Any) -> bool:
    """Whether a setting is there that only sampling looks at, other than the one that changes nothing."""
    neutral = {
        "temperature": 1.0,
        "top_p": 1.0,
        "typical_p": 1.0,
        "top_k": 50,
        "epsilon_cutoff": 0.0,
        "eta_cutoff": 0.0,
    }
    return any(getattr(generation, name) not in (None, neutral.get(name)) for name in _SAMPLING)


def _valid(generation: Any) -> bool:
    try:
        generation.validate(strict=True)
    except ValueError:
        return False
    return True
