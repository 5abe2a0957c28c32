"""What a run needs of its models at its end, tried at its beginning: nothing of it takes the weights.

Each model's configuration and tokenizer are looked at, and a small random copy of its architecture goes through what
the stages will do with the model: be loaded in the run's layout, sample and label, carry a scalar head and adapters, be
saved and be loaded again. `prepare` does it before the first stage, `cai-dist check --deep` without a run.
"""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoModelForSequenceClassification, GenerationConfig

from cai_dist.config.checks.run import shardings
from cai_dist.config.run import ModelsConfig, RunConfig
from cai_dist.config.stages import PPO, PREFERENCE, SUPERVISED
from cai_dist.config.training import LoraConfig
from cai_dist.errors import CaiError, ConfigError
from cai_dist.models.causal import CausalModel
from cai_dist.models.export import save_model
from cai_dist.models.limits import context_problem
from cai_dist.models.load import copy_tokenizer, load_causal, load_config, load_hf_causal, load_scalar, load_tokenizer
from cai_dist.models.load import load_scalar_with_language as load_both
from cai_dist.models.lora import add_lora
from cai_dist.models.quantized import quantize_trunk
from cai_dist.models.scalar import ScalarHeadModel
from cai_dist.models.sequence_parallel import model_problem
from cai_dist.models.shrunken import shrunken_causal
from cai_dist.stages.context import RunContext
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.types import Turn

_TEXTS = ("Hello, world! 42", "  two spaces\n\nand a line", "naïve façade 日本語 🙂", "def f(x):\n\treturn x")
_CHAT = (Turn("human", "Hello, who are you?"), Turn("assistant", "A model."), Turn("human", "And then?"))
_LAST_ROOM = 1.05
"""Disk space wanted for the models that a run leaves, times their size."""


@dataclass
class Rehearsal:
    """What was found: `problems` (the run would fail, a line each), `notes` (worth knowing, or not looked at)."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, who: str, act: Callable[[], Any]) -> Any:
        """What `act` returns; where it is refused, the refusal is noted for the model `who` and None comes back."""
        try:
            return act()
        except CaiError as error:
            self.problems += [f"{who}: {line}" for line in str(error).splitlines()]
        except Exception as error:  # libraries raise anything for a configuration that they do not take
            line = " ".join(str(error).split())[:200]
            self.problems.append(f"{who}: {type(error).__name__}: {line}")
        return None


def rehearse(ctx: RunContext, paths: Mapping[str, str]) -> Rehearsal:
    """Try the models in `paths` (role -> folder or hub name), each folder once, in all the roles that it plays."""
    found = Rehearsal()
    for path in dict.fromkeys(paths.values()):
        roles = [role for role in paths if paths[role] == path]
        if "pretrained" in roles:  # the one that most is asked of, and that messages name
            roles.sort(key=lambda role: role != "pretrained")
        _rehearse_model(ctx, found, roles, path)
    if not found.problems and (unknown := unknown_arguments(ctx.config.models, list(paths.values()))):
        found.problems.append(unknown)
    found.problems = list(dict.fromkeys(found.problems))
    return found


def unknown_arguments(models: ModelsConfig, paths: Sequence[str]) -> str | None:
    """One line where `models.chat_arguments` holds names that the chat template of no model in `paths` mentions, as a
    misspelt one does: a template takes any name without a word. None where every name is known to one of them."""
    if not models.chat_arguments:
        return None
    sources = "\n".join(str(load_tokenizer(path).get_chat_template()) for path in dict.fromkeys(paths))
    known = set(re.findall(r"[A-Za-z_]\w*", sources))
    names = sorted(set(models.chat_arguments) - known)
    if not names:
        return None
    near = [*dict.fromkeys(m for name in names for m in difflib.get_close_matches(name, known, n=1))]
    hint = f"; did you mean {', '.join(near)}?" if near else "; leave it out"
    return f"models.chat_arguments: no model's chat template has a variable {', '.join(names)}{hint}"


def context_line(config: RunConfig, role: str, model: Any) -> str | None:
    """One line where the model with this transformers configuration does not take `models.context`; else None."""
    # Every model that is trained, and whatever scores, descends from the pretrained one; the others generate.
    layout = config.models.layout if role == "pretrained" else None
    if problem := context_problem(model, config.models.context, layout):
        return f"models.context={config.models.context}: models.{role} ({getattr(config.models, role)}) {problem}"
    return None


def spread_problems(config: RunConfig, model: Any) -> list[str]:
    """One line for each role whose ranks cannot compute the sequences of the model with this transformers configuration
    together."""
    sizes = {key: one.sequence_parallel for key, one in shardings(config) if not key.startswith("world.")}
    found = {key: model_problem(model, size) for key, size in sizes.items() if size > 1}
    return [
        f"{key}.sequence_parallel={sizes[key]}: models.pretrained={config.models.pretrained} has {why}; set another "
        "number, or 1"
        for key, why in found.items()
        if why is not None
    ]


def tokenizer_problem(tokenizer: Any, rows: int) -> str | None:
    """Why a tokenizer does not belong to a model with `rows` embeddings; None where every id that it has a token for
    has a row."""
    token, largest = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1], default=("", -1))
    if largest < rows:
        return None
    return (
        f"the tokenizer has {len(tokenizer)} tokens up to id {largest} ({token!r}), the model {rows} embeddings; "
        "resize the embeddings (resize_token_embeddings) or take out the tokens that were added"
    )


def scalar_users(config: RunConfig) -> list[str]:
    """What this run trains with one number per answer on the trunk of `models.pretrained`, in words."""
    users = []
    if PREFERENCE in config.stages:
        users.append("the preference model")
    if PPO in config.stages and "value" in config.ppo.trained_roles:
        users.append("PPO's value model")
    if config.data.harm_ratings.source != "none":
        users.append("the model of harm ratings")
    return users


def uses(config: RunConfig) -> dict[str, Any]:
    """What `rehearse` tries a model for, beyond `models`: settings that make it worth another look."""
    adapted = {
        stage: lora.model_dump(mode="json", include={"target_modules"})
        | ({} if lora.quantization == "none" else {"quantization": lora.quantization})
        for stage, lora in config.loras.items()
    }
    return {
        "scalar": scalar_users(config),
        "language": config.data.ranked_answers.source != "none",
        "lora": adapted.pop(PPO, None),
        "backend": config.engine.backend,
        **({"adapted": adapted} if adapted else {}),
        "sequence_parallel": sorted({one.sequence_parallel for _, one in shardings(config)}),
    }


def scalar_problem(config: RunConfig, model: Any) -> str | None:
    """One line where the run needs a scalar head on this transformers configuration and there is no class for it."""
    users = scalar_users(config)
    if not users or type(model) in AutoModelForSequenceClassification._model_mapping:
        return None
    ways = []
    if PREFERENCE in config.stages:
        ways.append("set alignment=dpo")
    if config.data.harm_ratings.source != "none":
        ways.append("set data.harm_ratings.source=none")
    return (
        f"transformers has no sequence-classification model of type {model.model_type!r}, which {' and '.join(users)} "
        f"would be; {' and '.join(ways)}, or take another models.pretrained"
    )


def _rehearse_model(ctx: RunContext, found: Rehearsal, roles: list[str], path: str) -> None:
    config, role = ctx.config, roles[0]
    who = f"models.{role}={getattr(config.models, role)}"
    model = found.attempt(who, lambda: load_config(path))
    if model is None:
        return
    found.problems += [line for one in roles if (line := context_line(config, one, model))]
    tokenizer = found.attempt(who, lambda: load_tokenizer(path))
    if tokenizer is not None and (problem := tokenizer_problem(tokenizer, model.get_text_config().vocab_size)):
        found.problems.append(f"{who}: {problem}")
    if role == "pretrained" and (problem := scalar_problem(config, model)):
        found.problems.append(f"{who}: {problem}")
    if role == "pretrained" and (problem := _quantised(model)):
        found.problems.append(f"{who}: {problem}")
    if role == "pretrained":
        found.problems += spread_problems(config, model)
    with TemporaryDirectory(prefix="cai_dist-") as folder:
        if tokenizer is not None:
            found.attempt(who, lambda: _tokenizer_comes_back(ctx, path, Path(folder) / "tokenizer"))
        _rehearse_copy(ctx, found, roles, path, model, Path(folder))


def _rehearse_copy(ctx: RunContext, found: Rehearsal, roles: list[str], path: str, model: Any, folder: Path) -> None:
    """The small copy: saved as an export is, loaded as workers load it."""
    config, role, copied = ctx.config, roles[0], str(folder / "copy")
    who = f"models.{role}={getattr(config.models, role)}"
    try:
        hf = shrunken_causal(model)
    except ConfigError as error:
        found.notes.append(f"{who}: not tried before the first stage: {error}")
        return
    found.attempt(who, lambda: _give_generation(hf, path))
    repaired = found.attempt(who, lambda: save_model(hf, Path(copied)))
    if repaired is None:
        return
    if repaired:
        found.notes.append(
            f"{who}: generation_config.json is one that transformers does not save; exported models have "
            f"{', '.join(repaired)}"
        )
    if config.engine.backend == "hf":
        found.attempt(who, lambda: _serves(copied))
    if role != "pretrained":
        return
    layout = config.models.layout
    causal = found.attempt(who, lambda: load_causal(copied, "fp32", layout))
    if causal is None:
        return
    for stage, lora in config.loras.items():
        if stage != PREFERENCE:
            found.attempt(who, partial(_adapted, lambda: load_causal(copied, "fp32", layout), stage, lora))
    if not scalar_users(config) or scalar_problem(config, model):
        return
    if found.attempt(who, lambda: _scalar(config, copied)) is None:
        return
    for stage, lora in config.loras.items():
        if stage == PREFERENCE or (stage == PPO and "value" in config.ppo.trained_roles):
            found.attempt(who, partial(_adapted, lambda: load_scalar(copied, "fp32", 0, layout), stage, lora))


def _adapted(load: Callable[[], CausalModel | ScalarHeadModel], stage: str, lora: LoraConfig) -> None:
    """A fresh small copy takes the adapters of a stage. Raises ConfigError."""
    model = load()
    quantize_trunk(model, lora.quantization)
    add_lora(model, lora, 0, f"{stage}.lora")


def _scalar(config: RunConfig, copied: str) -> Any:
    """The small copy with a scalar head, saved and read again; with its language where that is trained beside it."""
    pretraining = PREFERENCE in config.stages and config.data.ranked_answers.source != "none"
    scalar = (load_both if pretraining else load_scalar)(copied, "fp32", 0, config.models.layout)
    saved = Path(copied).with_name("scalar")
    save_model(scalar.hf, saved)
    load_scalar(str(saved), "fp32", 0, config.models.layout)
    return scalar


def _serves(copied: str) -> None:
    """Whether the Hugging Face engine samples and labels with this architecture. Raises ConfigError."""
    from cai_dist.engines.hf.probe import probe_rollout

    probe_rollout(load_hf_causal(copied, "fp32"))


def _give_generation(hf: Any, path: str) -> None:
    """Put the generation configuration of the model in `path`, where it has one, on its small copy."""
    folder = Path(path)
    if hf.can_generate() and (not folder.is_dir() or (folder / "generation_config.json").is_file()):
        try:
            hf.generation_config = GenerationConfig.from_pretrained(path)
        except OSError as error:
            if folder.is_dir():  # on the hub, many models have none
                raise ConfigError(
                    f"generation_config.json cannot be read: {' '.join(str(error).split())[:200]}"
                ) from error


def _tokenizer_comes_back(ctx: RunContext, path: str, folder: Path) -> None:
    """The tokenizer beside an exported model gives the same ids as the one that it is a copy of. Raises ConfigError."""
    folder.mkdir()
    copy_tokenizer(path, folder)
    if (Path(path) / "config.json").is_file():
        shutil.copyfile(Path(path) / "config.json", folder / "config.json")
    elif not Path(path).is_dir():
        load_config(path).save_pretrained(folder)
    before, after = chat_format(ctx, path), chat_format(ctx, str(folder))
    for text in _TEXTS:
        if before.tokenizer(text)["input_ids"] != after.tokenizer(text)["input_ids"]:
            raise ConfigError(f"its tokenizer is another once it is copied beside a model: other ids for {text!r}")
    if before.prompt_ids(_CHAT) != after.prompt_ids(_CHAT):
        raise ConfigError("its chat template is another once it is copied beside a model")


def _quantised(model: Any) -> str | None:
    """Why a model with quantised weights cannot be trained; None for others, and where transformers unpacks them."""
    settings = getattr(model, "quantization_config", None)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    if str(getattr(method, "value", method)) == "mxfp4":
        return None
    return f"its weights are quantised ({method}), which cannot be trained; give the model with whole weights"


def room_problem(run_dir: Path, sizes: Mapping[str, int]) -> str | None:
    """One line where the disk of `run_dir` has less room than the models that the run leaves (`sizes`: name -> bytes).
    Checkpoints come on top of that."""
    free, needed = shutil.disk_usage(run_dir).free, sum(sizes.values()) * _LAST_ROOM
    if free >= needed:
        return None
    return (
        f"runs_dir: {run_dir} has {free / 2**30:.1f} GiB free, and the models that this run leaves "
        f"({', '.join(sizes)}) take {needed / 2**30:.1f} GiB, without checkpoints; make room or set another runs_dir"
    )


def model_bytes(ctx: RunContext, path: str) -> dict[str, int]:
    """Name -> bytes of each whole model that a run trains from the one in `path`; empty where its size is not known."""
    weights = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    small = {stage for stage, lora in ctx.config.loras.items() if lora.save == "adapter"}
    return {f"{stage}/model": weights for stage in ctx.config.stages if stage in {*SUPERVISED, PPO} - small}
