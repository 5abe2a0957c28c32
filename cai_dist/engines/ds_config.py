"""DeepSpeed configurations: a packaged or a user's JSON file whose "auto" values are filled from the run's settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cai_dist.config.training import Dtype, OptimizerConfig, ShardingConfig
from cai_dist.errors import ConfigError

_FOLDER = Path(__file__).resolve().parent.parent / "ds_configs"
PACKAGED = ("zero0", "zero1", "zero2", "zero3", "zero3_offload", "zero3_score")


def build_ds_config(sharding: ShardingConfig, optimizer: OptimizerConfig | None, dtype: Dtype) -> dict[str, Any]:
    """The complete configuration for `deepspeed.initialize`.

    The file is `sharding.ds_config` (a path, or a packaged name such as `zero3_offload`) or the packaged `zeroN` of
    `sharding.zero`. `optimizer` None is for an engine that only scores (ZeRO-3 without an optimiser).

    Raises: ConfigError for an unreadable file, a value that contradicts the run's settings, gradient accumulation of
        DeepSpeed's own (the engine accumulates itself), fp16, or an "auto" that nothing fills.
    """
    source, text = _read(sharding, scoring=optimizer is None)
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"sharding.ds_config={source}: not JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("zero_optimization"), dict):
        raise ConfigError(f"sharding.ds_config={source}: expected a JSON object with a zero_optimization section")
    _refuse_contradictions(config, source, sharding)
    values = _values(sharding, optimizer, dtype)
    _refuse_other_values(config, source, values)
    filled = _fill(config, values)
    left = sorted(_autos(filled))
    if left:
        raise ConfigError(f'sharding.ds_config={source}: nothing in the run fills "auto" of {left[0]}; write a value')
    return filled


def _read(sharding: ShardingConfig, *, scoring: bool) -> tuple[str, str]:
    name = sharding.ds_config or ("zero3_score" if scoring else f"zero{sharding.zero}")
    if name in PACKAGED:
        return name, (_FOLDER / f"{name}.json").read_text("utf-8")
    try:
        return name, Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"sharding.ds_config={name}: cannot be read ({type(error).__name__}); give a JSON file or one of "
            + ", ".join(PACKAGED)
        ) from error


def _refuse_contradictions(config: dict[str, Any], source: str, sharding: ShardingConfig) -> None:
    stage = config["zero_optimization"].get("stage", 0)
    if stage != sharding.zero:
        raise ConfigError(
            f"sharding.zero={sharding.zero} and zero_optimization.stage={stage} of sharding.ds_config={source} "
            "must be the same"
        )
    steps = config.get("gradient_accumulation_steps", 1)
    if steps not in (1, "auto"):
        raise ConfigError(
            f"gradient_accumulation_steps={steps} in sharding.ds_config={source} must be 1: micro-batches follow from "
            "batch_size, sharding.ranks and sharding.micro_batch"
        )
    if isinstance(config.get("fp16"), dict) and config["fp16"].get("enabled", True):
        raise ConfigError(f"fp16 in sharding.ds_config={source} is not supported: set models.dtype to fp32 or bf16")


def _refuse_other_values(config: dict[str, Any], source: str, values: dict[str, Any]) -> None:
    """A value in the file where the run says another would win in silence or fail inside DeepSpeed."""
    for path, value in values.items():
        given = _at(config, path.split("."))
        if given not in (None, "auto", value):
            raise ConfigError(
                f"{path}={given} in sharding.ds_config={source}, but the run's settings make it {value}: "
                'write "auto" there'
            )


def _at(node: Any, path: list[str]) -> Any:
    """The value at a path of keys; None where there is none."""
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _values(sharding: ShardingConfig, optimizer: OptimizerConfig | None, dtype: Dtype) -> dict[str, Any]:
    """What "auto" means at each path. DeepSpeed insists on its own batch arithmetic; only the product matters to it."""
    values: dict[str, Any] = {
        "train_batch_size": sharding.micro_batch * sharding.ranks,
        "train_micro_batch_size_per_gpu": sharding.micro_batch,
        "gradient_accumulation_steps": 1,
        "bf16.enabled": dtype == "bf16",
    }
    if optimizer is not None:
        values |= {
            "gradient_clipping": optimizer.grad_clip,
            "optimizer.params.lr": optimizer.lr,
            "optimizer.params.betas": list(optimizer.betas),
            "optimizer.params.eps": optimizer.eps,
            "optimizer.params.weight_decay": optimizer.weight_decay,
        }
    return values


def _fill(node: Any, values: dict[str, Any], path: str = "") -> Any:
    if isinstance(node, dict):
        return {key: _fill(value, values, f"{path}.{key}".lstrip(".")) for key, value in node.items()}
    return values.get(path, node) if node == "auto" else node


def _autos(node: Any, path: str = "") -> list[str]:
    if isinstance(node, dict):
        return [found for key, value in node.items() for found in _autos(value, f"{path}.{key}".lstrip("."))]
    return [path] if node == "auto" else []
