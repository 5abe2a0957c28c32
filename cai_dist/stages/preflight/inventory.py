"""What a run file names on this disk, read: data files record by record, the JSON files of model folders, the
constitution. Light, as a part of `cai-dist check`: no weights, and neither torch nor transformers is imported."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cai_dist.config.checks.evaluate import choice_files
from cai_dist.config.data import DataSource
from cai_dist.config.run import RunConfig
from cai_dist.constitution import run_constitution
from cai_dist.data.choices import load_choice_set
from cai_dist.data.comparisons import load_comparison_set
from cai_dist.data.prompts import load_prompt_set
from cai_dist.data.ranked import load_ranked_set
from cai_dist.data.ratings import load_rating_set
from cai_dist.data.reading import ReadReport
from cai_dist.data.sources import Source, shown
from cai_dist.errors import DataError, UserError

_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
)
_TEMPLATES = ("chat_template.jinja", "chat_template.json")


@dataclass
class Inventory:
    """What was looked at, one line each: `seen` (in order), `warnings` (in order, perhaps not meant), `problems` (the
    run would end on them); and `unseen`: what was not looked at, and why."""

    seen: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)


def take_inventory(config: RunConfig) -> Inventory:
    """Read what the run names and count it. Never raises for what it finds; the run file itself is in order."""
    found = Inventory()
    constitution = run_constitution(config)
    without = f" without {', '.join(config.without_principles)}" if config.without_principles else ""
    found.seen.append(
        f"constitution: {config.constitution}{without}: {len(constitution.critique_principles)} critique principles, "
        f"{len(constitution.comparison_principles)} comparison principles"
    )
    for name, source, read in _data_sets(config):
        if isinstance(source, DataSource) and source.hub is not None and not Path(source.hub).is_dir():
            found.unseen.append(f"{name}: {shown(source)} (of the hub; a run reads it before anything else)")
        else:
            _data_set(found, name, read)
    for source in dict.fromkeys(config.own_models.values()):
        roles = [role for role, of in config.own_models.items() if of == source]
        _model(found, config, roles, source)
    if config.feedback.endpoint is not None:
        found.unseen.append("the server of feedback.endpoint (a run asks it before anything else)")
    return found


def _data_sets(config: RunConfig) -> Iterator[tuple[str, Source, Callable[[], tuple[str, ReadReport]]]]:
    """(setting, source, what reads it and says what was taken from it), of the data sets that are not built in."""
    data, seed = config.data, config.seed

    def prompts(kind: Any) -> tuple[str, ReadReport]:
        found = load_prompt_set(getattr(data, kind), kind, seed)
        apart = sum(prompt.split == "heldout" for prompt in found.prompts)
        return f"{len(found.prompts) - apart} prompts to train on, {apart} held out", found.report

    def comparisons() -> tuple[str, ReadReport]:
        pairs = load_comparison_set(data.helpful_comparisons, seed)
        apart = sum(pair.prompt.split == "heldout" for pair in pairs.comparisons)
        return f"{len(pairs.comparisons) - apart} comparisons to train on, {apart} held out", pairs.report

    def ranked() -> tuple[str, ReadReport]:
        found = load_ranked_set(data.ranked_answers, seed)
        return f"{len(found.questions)} questions", found.report

    def ratings() -> tuple[str, ReadReport]:
        found = load_rating_set(data.harm_ratings, seed)
        return f"{len(found.ratings)} ratings", found.report

    def choices(source: Source, setting: str) -> tuple[str, ReadReport]:
        found = load_choice_set(str(source), setting)
        return f"{len(found.questions)} questions", found.report

    readers: tuple[tuple[str, Source, Callable[[], tuple[str, ReadReport]]], ...] = (
        ("red_team", data.red_team.source, lambda: prompts("red_team")),
        ("helpful", data.helpful.source, lambda: prompts("helpful")),
        ("helpful_comparisons", data.helpful_comparisons.source, comparisons),
        ("ranked_answers", data.ranked_answers.source, ranked),
        ("harm_ratings", data.harm_ratings.source, ratings),
    )
    for name, source, read in readers:
        if source not in ("world", "none"):
            yield f"data.{name}", source, read
    for setting, sources in choice_files(config):
        for source in sources:
            if source != "world":
                yield setting, source, partial(choices, source, setting)


def _data_set(found: Inventory, name: str, read: Callable[[], tuple[str, ReadReport]]) -> None:
    try:
        taken, report = read()
    except UserError as error:
        found.problems += [f"{name}: {line}" for line in str(error).splitlines()]
        return
    repeated = f", {report.duplicates} of them duplicates" if report.duplicates else ""
    skipped = f", {report.left_out} skipped" if report.left_out else ""
    found.seen.append(f"{name}: {report.source}: {report.records} records{repeated}{skipped}; {taken}")
    if report.left_out:
        found.warnings.append(f"{name}: {report.source}: of {report.records} records {report.why()}")


def _model(found: Inventory, config: RunConfig, roles: list[str], source: str) -> None:
    who = " and ".join(f"models.{role}" for role in roles)
    if source == "world":
        return  # made by the run, of the sizes in `world`
    if not Path(source).is_dir():
        found.unseen.append(f"{who}={source} (not a folder; --deep reads its configuration and tokenizer)")
        return
    try:
        settings = _json(Path(source) / "config.json")
    except DataError as error:
        found.problems.append(f"{who}: {error}")
        return
    problems = list(model_problems(config, roles, Path(source), settings))
    found.problems += [f"{who}={source}: {problem}" for problem in problems]
    if not problems:
        text = _text_settings(settings)
        sizes = ", ".join(
            f"{key} {text[key]}" for key in ("vocab_size", "max_position_embeddings") if isinstance(text.get(key), int)
        )
        found.seen.append(f"{who}: {source}: {settings['model_type']}" + (f", {sizes}" if sizes else ""))
        found.unseen.append(f"the weights in {source}")


def model_problems(config: RunConfig, roles: list[str], folder: Path, settings: dict[str, Any]) -> Iterator[str]:
    """One line for each thing that the JSON files of a model folder say, and that ends a run."""
    if not isinstance(settings.get("model_type"), str):
        yield "config.json names no model_type; give a model in the Hugging Face layout"
    if not any(folder.glob("*.safetensors")):
        yield "the folder holds no weights in *.safetensors; convert those that it has, or download them"
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            files = _json(index).get("weight_map", {})
            missing = sorted({str(name) for name in files.values() if not (folder / str(name)).is_file()})
        except (DataError, AttributeError):
            yield f"{index.name} is no index of weight files"
            continue
        if missing:
            yield f"{index.name} names {missing[0]}, which is not there" + (
                f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            )
    yield from _tokenizer_problems(config, folder)
    positions = _text_settings(settings).get("max_position_embeddings")
    if isinstance(positions, int) and config.models.context > positions:
        yield f"takes at most {positions} tokens, and models.context={config.models.context}; lower that"
    method = (settings.get("quantization_config") or {}).get("quant_method")
    if method is not None and method != "mxfp4" and "pretrained" in roles:
        yield f"its weights are quantised ({method}), which cannot be trained; give the model with whole weights"


def _tokenizer_problems(config: RunConfig, folder: Path) -> Iterator[str]:
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        yield f"the folder holds no tokenizer ({', '.join(_TOKENIZERS[:2])}, …); put it beside the weights"
    settings: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "generation_config.json"):
        try:
            settings[name] = _json(folder / name) if (folder / name).is_file() else {}
        except DataError as error:
            yield str(error)
    template = (settings.get("tokenizer_config.json") or {}).get("chat_template")
    given = template or any((folder / name).is_file() for name in _TEMPLATES)
    if config.models.chat == "template" and "tokenizer_config.json" in settings and not given:
        yield "models.chat=template, but its tokenizer has no chat template; set models.chat=plain"


def _text_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the language model, which are inside where a model has several parts."""
    inside = settings.get("text_config")
    return inside if isinstance(inside, dict) else settings


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: must hold one JSON object")
    return value
