"""Reading a constitution: a packaged one, a YAML file, or a folder with the published JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from cai_dist.config.run import RunConfig
from cai_dist.constitution.published import is_published_folder, read_published
from cai_dist.constitution.schema import Constitution, problem
from cai_dist.errors import ConfigError, DataError

PACKAGED = ("default", "micro")
_HERE = Path(__file__).parent
MAX_ENTRIES = 100_000
"""Of a constitution. Aliases of aliases (*name) make any number of entries out of a few lines."""


def load_constitution(source: str) -> Constitution:
    """The constitution named by `source`.

    `default` and `micro` come with the package; anything else is the path of a YAML file of the same form, or of a
    folder with the JSON files published beside the paper. Raises ConfigError where there is nothing at that path and
    DataError, naming file and entry, where the content is malformed.
    """
    path = _HERE / f"{source}.yaml" if source in PACKAGED else Path(source).expanduser()
    if path.is_dir():
        if not is_published_folder(path):
            raise ConfigError(
                f"constitution={source}: the folder lacks the published file CritiqueRevisionInstructions.json"
            )
        data, file = read_published(path, _default_templates()), str(path)
    elif path.is_file():
        data, file = _read_yaml(path), str(path)
    else:
        raise ConfigError(f"constitution={source}: no such file or folder; give {', '.join(PACKAGED)} or a path")
    return parse_constitution(data, file)


def run_constitution(config: RunConfig) -> Constitution:
    """The constitution of a run: `constitution` without `without_principles`. Raises ConfigError, DataError."""
    return load_constitution(config.constitution).without(config.without_principles)


def parse_constitution(data: object, file: str) -> Constitution:
    """Check plain data (as read from YAML or JSON) and make a constitution of it. Raises DataError naming `file`."""
    if not isinstance(data, Mapping):
        raise DataError(f"{file}: a constitution is a mapping with name, critique_principles, comparison_principles, …")
    try:
        # Through JSON, because only there lists become tuples in pydantic's strict mode.
        if _size(data, {}) > MAX_ENTRIES:
            raise ValueError(f"and no more than {MAX_ENTRIES} of them, aliases written out")
        text = json.dumps(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: only text, numbers, lists and mappings are allowed ({error})") from None
    try:
        constitution = _ADAPTER.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(str(part) for part in first["loc"]) or "top level"
        raise DataError(f"{file}: {entry}: {first['msg']}") from None
    constitution = _resolve_principle_ids(constitution)
    if reason := problem(constitution):
        raise DataError(f"{file}: {reason}")
    return constitution


_ADAPTER: TypeAdapter[Constitution] = TypeAdapter(Constitution)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: bytes that are no UTF-8, and plain scalars that look like a date or a number and are none.
        raise DataError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _size(data: object, known: dict[int, int]) -> int:
    """How many entries plain data has if every alias is written out; counted without doing so."""
    if not isinstance(data, (Mapping, list)):
        return 1
    if id(data) not in known:
        known[id(data)] = 1  # of itself, in case that it contains itself
        known[id(data)] += sum(_size(value, known) for value in (data.values() if isinstance(data, Mapping) else data))
    return known[id(data)]


def _default_templates() -> dict[str, Any]:
    """The published files have prompts but no template; they are used with the default one."""
    templates: dict[str, Any] = _read_yaml(_HERE / "default.yaml")["templates"]
    return templates


def _resolve_principle_ids(constitution: Constitution) -> Constitution:
    """A worked comparison may name a principle by its id instead of repeating the text."""
    texts = {p.id: p.text for p in constitution.comparison_principles}
    examples = tuple(
        replace(e, principle=texts.get(e.principle, e.principle)) for e in constitution.few_shot_comparisons
    )
    return replace(constitution, few_shot_comparisons=examples)
