"""Models that are built cut over two ranks, compared with the same models loaded whole; run by `tests.two_ranks`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import cai_dist
from cai_dist.config.training import Dtype, LoraConfig, OptimizerConfig, ShardingConfig
from cai_dist.engines.training.decay import parameter_groups
from cai_dist.engines.training.deepspeed_engine import DeepSpeedEngine
from cai_dist.engines.training.partitioning import partition_of
from cai_dist.errors import UserError
from cai_dist.models.export import save_model
from cai_dist.models.load import load_causal, load_scalar, load_scalar_with_language
from cai_dist.models.lora import add_lora
from cai_dist.types import RankInfo

SECONDS = 120.0
IDS = torch.arange(3, 16) * 7 % 61 + 3
LENGTHS = torch.tensor([8, 5])
"""No longer than the windows of the models of `tests.architectures`."""
KINDS: dict[str, Callable[..., Any]] = {
    "causal": lambda source, dtype, layout, *cut: load_causal(source, dtype, layout, *cut),
    "scalar": lambda source, dtype, layout, *cut: load_scalar(source, dtype, 5, layout, *cut),
    "language": lambda source, dtype, layout, *cut: load_scalar_with_language(source, dtype, 5, layout, *cut),
}


def zero3(folder: Path, threshold: int) -> ShardingConfig:
    """ZeRO-3 on two ranks; parameters of fewer elements than `threshold` are whole on both, too."""
    settings = json.loads((Path(cai_dist.__file__).parent / "ds_configs" / "zero3.json").read_text("utf-8"))
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = threshold
    target = folder / f"zero3-{threshold}-{dist.get_rank()}.json"
    target.write_text(json.dumps(settings), "utf-8")
    return ShardingConfig(ranks=2, zero=3, micro_batch=1, ds_config=str(target))


def outputs(model: Any, kind: str) -> torch.Tensor:
    """Everything that a model says of two sequences."""
    wanted = torch.ones(len(IDS), dtype=torch.bool)
    if kind == "causal":
        found: torch.Tensor = model(IDS, LENGTHS, wanted, 0.7, False)[0]
        return found
    if kind == "scalar":
        return model(IDS, LENGTHS)  # type: ignore[no-any-return]
    return torch.cat(model(IDS, LENGTHS, wanted))


def compare(info: RankInfo, jobs: list[dict[str, Any]], folder: str) -> dict[str, str]:
    """Name of a job -> "same" (outputs bit for bit, buffers, and what is exported byte for byte), "refused", or what is
    not the same. A job has `name`, `source` and what `_compare` takes beside."""
    return {job["name"]: _compare(Path(folder) / job["name"], **job) for job in jobs}


def _compare(
    folder: Path,
    name: str,
    source: str,
    kind: str = "causal",
    dtype: Dtype = "fp32",
    layouts: tuple[str, ...] = ("packed", "padded"),
    threshold: int = 0,
    lora: bool = False,
    share: float = 0.55,
) -> str:
    load = KINDS[kind]
    folder.mkdir(exist_ok=True)
    whole = None
    for layout in layouts:
        try:
            load(source, "fp32", layout)  # in half precision a check sees less
            whole = load(source, dtype, layout)
            break
        except UserError:
            continue
    if whole is None:
        return "refused"
    sharding, optimizer = zero3(folder, threshold), OptimizerConfig(weight_decay=0.1)
    with torch.no_grad():
        expected = outputs(whole, kind)
    cut = load(source, dtype, layout, partition_of(sharding, optimizer, dtype, SECONDS))
    if lora:
        for model in (whole, cut):
            add_lora(model, LoraConfig(rank=2), 1)
    engine = DeepSpeedEngine(cut, optimizer, sharding, dtype, 4, SECONDS)
    found = engine.infer([None], lambda model, _: outputs(model, kind))[0]
    return (
        _another_size(cut, whole, share)
        or _another_buffer(cut, whole)
        or ("" if torch.equal(found, expected) else f"outputs off by {float((found - expected).abs().max()):.3g}")
        or ("" if lora else _another_file(engine, whole, folder))
        or "same"
    )


def _another_size(cut: Any, whole: Any, share: float) -> str:
    """A rank holds half of the elements and a little of padding, where nothing is small enough to stay whole."""
    mine, total = (sum(getattr(p, "ds_tensor", p).numel() for p in model.parameters()) for model in (cut, whole))
    return "" if mine <= share * total else f"a rank holds {mine} of {total} elements"


def _another_buffer(cut: Any, whole: Any) -> str:
    theirs = dict(whole.named_buffers())
    for name, buffer in cut.named_buffers():
        if buffer.dtype != theirs[name].dtype or not torch.equal(buffer, theirs[name]):
            return f"{name} is another"
    return ""


def _another_file(engine: DeepSpeedEngine, whole: Any, folder: Path) -> str:
    """Files of the export of the cut model against those of the whole one."""
    engine.export(folder / "cut")
    if dist.get_rank() == 0:
        save_model(whole.hf, folder / "whole")
    dist.barrier()
    for file in sorted((folder / "whole").iterdir()):
        theirs = folder / "cut" / file.name
        if not theirs.is_file() or file.read_bytes() != theirs.read_bytes():
            return f"{file.name} is another"
    return ""


def refusals(info: RankInfo, sources: list[str], folder: str) -> list[str]:
    """What each rank says of models that cannot be loaded."""
    found = []
    for source in sources:
        try:
            load_causal(
                source, "fp32", "packed", partition_of(zero3(Path(folder), 0), OptimizerConfig(), "fp32", SECONDS)
            )
            found.append("loaded")
        except UserError as error:
            found.append(str(error))
    return found


def decaying(info: RankInfo, source: str, folder: str) -> list[list[str]]:
    """Names of the parameters that weight decay acts on: in the cut model, and in the whole one."""
    optimizer = OptimizerConfig(weight_decay=0.1)
    found = []
    for partition in (partition_of(zero3(Path(folder), 0), optimizer, "fp32", SECONDS), None):
        model = load_causal(source, "fp32", "packed", partition)
        ids = {id(p) for p in parameter_groups(model, model.hf, optimizer)[0]["params"]}
        found.append([name for name, parameter in model.named_parameters() if id(parameter) in ids])
    return found
