"""Writes docs/configuration.md from the configuration models: their docstrings, types, bounds and defaults.

    python docs/make_configuration.py            write the page
    python docs/make_configuration.py --check    exit 1 if the page is not up to date

The same models give the same page, byte for byte; tests/unit/test_docs.py compares.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from cai_dist.config.base import Section, StrategyPath
from cai_dist.config.loading.yaml_text import dump_text
from cai_dist.config.run import RunConfig

PAGE = Path(__file__).resolve().parent / "configuration.md"

# Meanings of fields that explain themselves in the code and have no docstring there.
MEANINGS = {
    "RunConfig.name": "The run's folder below `runs_dir`.",
    "RunConfig.seed": "Everything that is drawn follows from it.",
    "RunConfig.runs_dir": "Where run folders go; relative to the current directory.",
    "ModelsConfig.dtype": "Numbers that models compute in.",
    "WorldConfig.hidden_size": "Width; divided by `heads` at least 32.",
    "WorldConfig.layers": "Transformer blocks.",
    "WorldConfig.heads": "Attention heads.",
    "WorldConfig.intermediate_size": "Width of the feed-forward layers.",
    "PromptSource.source": "`world`, the path of a file, folder or pattern, or a section: [data](data.md).",
    "ComparisonSource.source": "`world`, `none`, a path or a section: [data](data.md).",
    "RankedSource.source": "`world`, `none`, a path or a section: [data](data.md).",
    "ComparisonSource.limit": "Use this many (drawn by the run's seed); default: all, or 2000 of the micro-world's.",
    "ReviseConfig.rounds": "Critiques and revisions of each answer.",
    "ReviseConfig.workers": "Processes that generate.",
    "FeedbackConfig.pairs_per_prompt": "Pairs of answers for each red-team prompt, each with a principle of its own.",
    "FeedbackConfig.few_shot": "Worked comparisons of the constitution that go before the question.",
    "FeedbackConfig.shard_size": "Answers or questions per durable shard.",
    "FeedbackConfig.workers": "Processes that generate and score.",
    "PlacementConfig.cpus": "Logical CPUs of one worker. They count places; threads are `cluster.threads`.",
    "PlacementConfig.gpus": "GPUs of one worker; a fraction shares one.",
    "PpoConfig.iterations": "Rollout and update phases.",
    "PpoConfig.prompts_per_iteration": "Prompts that an iteration draws.",
    "PpoConfig.samples_per_prompt": "Responses to each of them.",
    "PpoConfig.gamma": "Discount per token.",
    "PpoConfig.gae_lambda": "Lambda of GAE: 1 is Monte Carlo, 0 is one step.",
    "PpoConfig.clip": "Half width of the trust interval of the policy's ratio.",
    "PpoConfig.value_clip": "Largest rewarded move of a value away from the rollout's.",
    "PpoConfig.whiten_advantages": "Subtract the mean and divide by the deviation, over the whole iteration.",
    "PpoConfig.transfer_bucket_mb": "Size of one bucket of a weight transfer, in MiB.",
    "EvaluateConfig.samples_per_prompt": "Answers of each model to each held-out prompt.",
    "EvaluateConfig.shard_size": "Prompts per durable shard.",
    "EvaluateConfig.workers": "Processes that generate and score.",
    "ClusterConfig.object_store_mb": "Ray's object store on a local cluster, in MiB; default: Ray decides.",
    "TrackingConfig.project": "Name of the wandb project.",
    "TrackingConfig.console": "`auto`: `rich` on a terminal, else `plain` lines; `quiet`: warnings and tables alone.",
    "OptimizerConfig.warmup_steps": "Steps over which the rate climbs to `lr`.",
    "OptimizerConfig.final_lr_fraction": "Share of `lr` that `cosine` and `linear` end at.",
    "OptimizerConfig.betas": "Decay of AdamW's two moments.",
    "OptimizerConfig.eps": "AdamW's epsilon.",
    "OptimizerConfig.weight_decay": "AdamW's decay of the weights.",
    "TrainConfig.epochs": "Passes over the examples.",
    "SamplingConfig.top_p": "Sample from the most likely tokens that add up to this; 1: from all.",
    "SamplingConfig.max_new_tokens": "Longest answer in tokens.",
}
SECTIONS = {
    "RunConfig": "Top level",
    "TrainConfig": "Training",
    "OptimizerConfig": "Optimizer",
    "ShardingConfig": "Sharding",
    "ScoringConfig": "Sharded scoring",
    "SamplingConfig": "Sampling",
    "LoraConfig": "LoRA",
    "PromptSource": "Prompt source",
    "DataSource": "Data source",
    "PlacementConfig": "Placement",
    "DataConfig": "Where prompts and comparisons come from.",
    "TrackingConfig": "What is shown and recorded beside `metrics.jsonl`, which is always written.",
}
"""Titles of sections that several others hold, and what is said of sections without a docstring."""

HEAD = """\
<!-- Written by docs/make_configuration.py from the code. Do not edit: change the docstrings and run it again. -->
# Configuration

A run is one YAML file, such as `launch/runs/demo.yaml`. `name` must be given; everything else has a default. Every key
can be overridden on the command line: `cai-dist run launch/runs/demo.yaml ppo.iterations=3 seed=1`.

- **Strict.** Unknown keys, wrong types (`"3"` or `3.0` for a whole number) and contradictions are refused, each as one
  line `FILE:LINE: key=value: what is allowed`. `cai-dist check RUN.yaml` tells in a second.
- **`extends: other.yaml`** starts from another file (its path is relative to the file that says so). Sections merge key
  by key, the nearer file wins, lists are replaced. **`null`** takes an inherited key away, a
  section as well as a number: it has its default again. Where null is a value of the setting (`ppo.lora`,
  `feedback.gate`) it is that value. Where nothing is inherited, it is a mistake. Overrides may do so, too:
  `ppo.placement=null`.
- **Overrides** are applied last, in their order, and are typed as in YAML: `seed=1`, `tracking.wandb=off`,
  `revise.principles=null`, `feedback.option_labels='["A", "B"]'`, `'ppo.kl={target: 5.0}'`.
- **Paths.** `~` and `${VARIABLE}` are replaced in `runs_dir`, `constitution`, `models.assistant`, `models.pretrained`,
  `models.feedback`, the `source` of the sections under `data` (or its `path` and `hub`), and `ds_config`; nowhere
  else. An unset variable is a mistake. Relative paths are relative to the current directory.
- **YAML 1.2.** `1e-5` is a number, `on`, `off`, `yes` and `no` are text, a key given twice is refused.
- The whole configuration of a run, defaults included, is written to `config.yaml` in its folder.

Refused, too, are settings that are wrong only together: a `max_tokens_per_micro_batch` that the longest example of
`models.context` would exceed; a mini-batch that does not divide an iteration's samples; `max_new_tokens` that leaves no
room for a prompt in `models.context`; `sft.revisions` beyond `revise.rounds`; `preference.helpful_fraction` above 0
without comparisons; an adapter (`lora.save`) whose base is not kept or not local; a
`ppo.value_warmup` that never ends; `ppo.sampling.temperature` 0 or `top_p` below 1; a
placement larger than `cluster.num_cpus`; a `ds_config` of another ZeRO stage; files, folders or packages that are not
there.
"""


def main() -> int:
    """Write the page, or with `--check` only compare; the exit code."""
    text = page()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


def page() -> str:
    """The whole page."""
    shared = [model for model, uses in _uses(RunConfig).items() if uses > 1]
    parts = [HEAD, _table("Top level", RunConfig, "", shared, only_values=True)]
    for name, field in RunConfig.model_fields.items():
        model = _section(field)
        if model is not None:
            parts.append(_table(f"`{name}`", model, f"{name}.", shared))
    parts.append("# Sections that several others hold\n")
    parts += [_table(SECTIONS[model.__name__], model, "", shared) for model in shared]
    return "\n".join(parts)


def _table(
    title: str, model: type[Section], prefix: str, shared: list[type[Section]], only_values: bool = False
) -> str:
    lines = [f"## {title}\n"]
    explained = _one_line(model.__dict__.get("__doc__")) or SECTIONS.get(model.__name__, "")
    lines += [f"{explained}\n"] if explained else []
    lines += ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in _rows(model, prefix, shared, only_values)]
    return "\n".join(lines) + "\n"


def _rows(
    model: type[Section], prefix: str, shared: list[type[Section]], only_values: bool
) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        inner = _section(field)
        if inner is None:
            yield f"`{prefix}{name}`", _default(field), _allowed(field), _cell(meaning(model, name))
        elif inner in shared:
            title = SECTIONS[inner.__name__]
            link = f"[{title}](#{title.lower().replace(' ', '-')})"
            text, absent = isinstance(field.default, str), field.default is None
            yield (
                f"`{prefix}{name}`",
                _default(field) if text or absent else _difference(field, inner),
                f"text or {link}" if text else f"{link} or null" if absent else "section",
                _cell(meaning(model, name)) or f"See {link}.",
            )
        elif not only_values:
            explained = meaning(model, name) or _one_line(inner.__doc__)
            default, allowed = (
                ("`null`", "section or null")
                if field.default is None
                else ("", "list of sections" if isinstance(field.default, tuple) else "section")
            )
            if explained:
                yield f"`{prefix}{name}`", default, allowed, _cell(explained)
            each = "[]" if isinstance(field.default, tuple) else ""
            yield from _rows(inner, f"{prefix}{name}{each}.", shared, only_values)


def meaning(model: type[Section], name: str) -> str:
    """What a field means: its docstring, or the entry of `MEANINGS`."""
    return _one_line(model.model_fields[name].description) or MEANINGS.get(f"{model.__name__}.{name}", "")


def _uses(model: type[Section]) -> Counter[type[Section]]:
    """How often each section stands in the tree, in the order of first mention."""
    found: Counter[type[Section]] = Counter()
    for field in model.model_fields.values():
        inner = _section(field)
        if inner is not None:
            found[inner] += 1
            found.update(_uses(inner))
    return found


def _section(field: FieldInfo) -> type[Section] | None:
    """The Section that a field holds, also where it may be null."""
    kinds = get_args(field.annotation) or (field.annotation,)
    return next((one for one in kinds if isinstance(one, type) and issubclass(one, Section)), None)


def _default(field: FieldInfo) -> str:
    return "must be given" if field.is_required() else f"`{_yaml(field.default)}`"


def _difference(field: FieldInfo, inner: type[Section]) -> str:
    """What a section's default says otherwise than the section itself does."""
    given, plain = field.default.model_dump(), inner().model_dump()
    return ", ".join(f"`{key}: {_yaml(value)}`" for key, value in given.items() if value != plain[key])


def _yaml(value: Any) -> str:
    """A value as it is written in a run file."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    text = dump_text({"x": value}).removeprefix("x: ").strip()
    return '""' if text == "''" else text


def _allowed(field: FieldInfo) -> str:
    bounds = []
    for item in field.metadata:
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if getattr(item, name, None) is not None:
                bounds.append(f"{sign} {getattr(item, name):g}")
        if getattr(item, "pattern", None):
            return f"`{item.pattern}`"
    return _kind(field.annotation, f" {', '.join(bounds)}" if bounds else "")


def _kind(annotation: Any, bounds: str = "") -> str:
    """A type in words, with the bounds of its numbers."""
    names = {int: "whole number" + bounds, float: "number" + bounds, str: "text", bool: "true, false", NoneType: "null"}
    if annotation is Any:
        return "any value"
    if annotation in names:
        return names[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return "`package.module:object`" if annotation == StrategyPath else _kind(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{_yaml(value)}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_kind(one, bounds) for one in sorted(arguments, key=lambda one: one is NoneType))
    if origin is dict:
        return f"{_kind(arguments[0])} to {_kind(arguments[1])}"
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {_kind(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)}: {_kind(arguments[0])}"
    if origin is dict:
        return "mapping"
    raise TypeError(f"no words for the type {annotation}")


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
