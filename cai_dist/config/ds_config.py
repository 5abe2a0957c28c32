"""DeepSpeed configurations: a packaged or a user's JSON file, made complete from the run's settings.

What the run decides (learning rate, clipping, precision, batch) is "auto" in a file, or not there at all: both are
filled in. A value of the file's own that says otherwise is refused, as is what would change the training behind the
run's back: a schedule, skipped checks, states in half precision, layers dropped on the way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cai_dist.config.training import Dtype, OptimizerConfig, ShardingConfig
from cai_dist.errors import ConfigError

_FOLDER = Path(__file__).resolve().parent.parent / "ds_configs"
PACKAGED = ("zero0", "zero1", "zero2", "zero3", "zero3_offload", "zero3_score")
_ONLY: Mapping[str, Any] = {
    "bf16.bf16_master_weights_and_grads": False,
    "bf16.bf16_optimizer_states": False,
    "bf16.check_grad_overflow": True,
    "zero_optimization.compute_grad_norm": True,
    "optimizer.params.adam_w_mode": True,
    "optimizer.params.amsgrad": False,
    "optimizer.params.fp32_optimizer_states": True,
    "prescale_gradients": False,
    "gradient_predivide_factor": 1.0,
    "torch_autocast.enabled": False,
    "amp.enabled": False,
    "progressive_layer_drop.enabled": False,
    "curriculum_learning.enabled": False,
    "data_efficiency.enabled": False,
}
"""What DeepSpeed does where a file does not say, and the only value that a file may have there."""
_OPTIMIZERS = ("AdamW", "Adam")


def build_ds_config(
    sharding: ShardingConfig, optimizer: OptimizerConfig | None, dtype: Dtype, key: str = "sharding"
) -> dict[str, Any]:
    """The complete configuration for `deepspeed.initialize`.

    The file is `sharding.ds_config` (a path, or a packaged name such as `zero3_offload`) or the packaged `zeroN` of
    `sharding.zero`. `optimizer` None is for an engine that only scores (ZeRO-3 without an optimiser). `key` is where
    the run file has `sharding`.

    Raises: ConfigError for an unreadable file, a value that contradicts the run's settings, gradient accumulation of
        DeepSpeed's own (the engine accumulates itself), fp16, a schedule, or an "auto" that nothing fills.
    """
    source, text = _read(sharding, key, scoring=optimizer is None)
    where = f"{key}.ds_config={source}"
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("zero_optimization"), dict):
        raise ConfigError(f"{where}: expected a JSON object with a zero_optimization section")
    _refuse_contradictions(config, where, key, sharding)
    values = _values(sharding, optimizer, dtype)
    _refuse_other_values(config, where, values)
    filled = _fill(_with_absent(config, values, optimizer), values)
    left = sorted(_autos(filled))
    if left:
        raise ConfigError(f'{where}: nothing in the run fills "auto" of {left[0]}; write a value')
    return filled


def _read(sharding: ShardingConfig, key: str, *, scoring: bool) -> tuple[str, str]:
    name = sharding.ds_config or ("zero3_score" if scoring else f"zero{sharding.zero}")
    if name in PACKAGED:
        return name, (_FOLDER / f"{name}.json").read_text("utf-8")
    try:
        return name, Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{key}.ds_config={name}: cannot be read ({type(error).__name__}); give a JSON file or one of "
            + ", ".join(PACKAGED)
        ) from error


def _refuse_contradictions(config: dict[str, Any], where: str, key: str, sharding: ShardingConfig) -> None:
    stage = config["zero_optimization"].get("stage", 0)
    if stage != sharding.zero:
        raise ConfigError(f"{key}.zero={sharding.zero} and zero_optimization.stage={stage} of {where} must be the same")
    steps = config.get("gradient_accumulation_steps", 1)
    if steps not in (1, "auto"):
        raise ConfigError(
            f"gradient_accumulation_steps={steps} in {where} must be 1: micro-batches follow from "
            "batch_size, sharding.ranks and sharding.micro_batch"
        )
    if isinstance(config.get("fp16"), dict) and config["fp16"].get("enabled", True):
        raise ConfigError(f"fp16 in {where} is not supported: set models.dtype to fp32 or bf16")
    if "scheduler" in config:
        raise ConfigError(f"scheduler in {where}: the run has its own (optimizer.schedule); leave it out there")
    for section in ("bf16", "optimizer", "data_types"):
        if not isinstance(config.get(section, {}), dict):
            raise ConfigError(f"{section} in {where}: must be a JSON object")
    kind = config.get("optimizer", {}).get("type", "AdamW")
    if kind not in _OPTIMIZERS:
        raise ConfigError(f"optimizer.type={kind} in {where}: must be one of {', '.join(_OPTIMIZERS)}")
    for path, only in _ONLY.items():
        given = _at(config, path.split("."))
        if given not in (None, only):
            raise ConfigError(f"{path}={given} in {where}: must be {only}; leave it out there")


def _refuse_other_values(config: dict[str, Any], where: str, values: dict[str, Any]) -> None:
    """A value in the file where the run says another would win in silence or fail inside DeepSpeed."""
    for path, value in values.items():
        given = _at(config, path.split("."))
        if given not in (None, "auto", value):
            raise ConfigError(f'{path}={given} in {where}, but the run\'s settings make it {value}: write "auto" there')


def _at(node: Any, path: list[str]) -> Any:
    """The value at a path of keys; None where there is none."""
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _values(sharding: ShardingConfig, optimizer: OptimizerConfig | None, dtype: Dtype) -> dict[str, Any]:
    """What the run decides, by path. DeepSpeed insists on its own batch arithmetic; only the product matters to it."""
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
            # In half precision a sum over many micro-batches stops growing. Without ZeRO DeepSpeed knows no other type
            # than the model's; the engine then sums in fp32 itself.
            "data_types.grad_accum_dtype": "bf16" if dtype == "bf16" and sharding.zero == 0 else "fp32",
        }
        if sharding.zero < 2:
            # Here what goes from rank to rank is that sum, once a step.
            values["communication_data_type"] = "fp32"
    return values


def _with_absent(config: dict[str, Any], values: Mapping[str, Any], optimizer: OptimizerConfig | None) -> Any:
    """A copy in which every path of `values` is there, and an optimiser where one is needed."""
    made: dict[str, Any] = json.loads(json.dumps(config))
    if optimizer is not None:
        if "optimizer" not in made:
            made["optimizer"] = {"params": {"torch_adam": True, "fused": True}}
            made.setdefault("zero_force_ds_cpu_optimizer", False)
        made["optimizer"].setdefault("type", _OPTIMIZERS[0])
    for path in values:
        *sections, last = path.split(".")
        node = made
        for section in sections:
            node = node.setdefault(section, {})
        node.setdefault(last, "auto")
    return made


def _fill(node: Any, values: Mapping[str, Any], path: str = "") -> Any:
    if isinstance(node, dict):
        return {key: _fill(value, values, f"{path}.{key}".lstrip(".")) for key, value in node.items()}
    return values.get(path, node) if node == "auto" else node


def _autos(node: Any, path: str = "") -> list[str]:
    if isinstance(node, dict):
        return [found for key, value in node.items() for found in _autos(value, f"{path}.{key}".lstrip("."))]
    return [path] if node == "auto" else []
