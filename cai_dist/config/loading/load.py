"""Reading a run: YAML file, the files that it extends, overrides of the command line, one strict tree at the end.

    demo.yaml --extends--> base.yaml      deep merge, the nearer file wins (`cai_dist.config.loading.inherit`)
    key.sub=value                         overrides, values typed as in YAML
    ~ and ${VAR}                          expanded in path fields alone (`is_path_key`)
    RunConfig                             strict: unknown keys and wrong types are refused, nothing is coerced

Every problem becomes one line, `ORIGIN: KEY=VALUE: what is allowed`, with ORIGIN as `file:line` or `override`; all
problems of a run are reported together in one `ConfigError`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cai_dist.config.loading.inherit import merge
from cai_dist.config.loading.messages import HIDDEN, describe_problems, hidden
from cai_dist.config.loading.yaml_text import Document, Key, dump_text, parse_value, read_document
from cai_dist.config.run import RunConfig
from cai_dist.errors import ConfigError

PATH_KEYS = (
    "runs_dir",
    "constitution",
    "models.assistant",
    "models.pretrained",
    "models.feedback",
    "evaluate.multiple_choice",
    "evaluate.label_questions",
)
DATA_PATHS = (".source", ".source.path", ".source.hub")
_VARIABLE = re.compile(r"\$\{([^}]*)\}")


def is_path_key(key: str) -> bool:
    """Whether the dotted `key` holds a path: `~` and ${VAR} are expanded there and nowhere else."""
    data = key.startswith("data.") and key.endswith(DATA_PATHS)
    return key in PATH_KEYS or data or key.endswith(".ds_config")


def load_run(path: str | os.PathLike[str], overrides: Sequence[str] = (), *, elsewhere: bool = False) -> RunConfig:
    """Read the run file at `path`, apply `overrides` ("key.sub=value", in order) and return the whole, frozen run.

    Relative paths inside the run stay relative to the current directory; `extends:` is relative to its own file.
    `elsewhere`: the run is another machine's, so variables in its paths may be unset here and stay as they are written.
    Raises ConfigError with one line for each problem.
    """
    document = _read_extended(Path(path), ())
    for override in overrides:
        _apply(document, override)
    return build_run(document.data, document.origins, str(path), elsewhere=elsewhere)


def default_run(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The run called `name` that no file describes: defaults, and `overrides` as `load_run` takes them. Raises
    ConfigError with one line for each problem."""
    document = Document({"name": name}, {})
    for override in overrides:
        _apply(document, override)
    return build_run(document.data, document.origins)


def build_run(
    data: Mapping[str, Any], origins: Mapping[Key, str] | None = None, where: str = "run", *, elsewhere: bool = False
) -> RunConfig:
    """Validate a tree of plain values; `origins` says for each key path where it was written, `where` for all others;
    `elsewhere` as for `load_run`.

    Raises ConfigError with one line for each problem.
    """
    origins = origins or {}
    problems: list[str] = []
    expanded = _expand(data, (), origins, where, [] if elsewhere else problems)
    try:
        # The JSON route of pydantic is strict about types and yet takes lists for tuples, which YAML cannot write.
        config = RunConfig.model_validate_json(json.dumps(expanded), strict=True)
    except ValidationError as error:
        problems += describe_problems(error, origins, where)
        raise ConfigError("\n".join(problems)) from None
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def dump_run(config: RunConfig) -> str:
    """The whole run, defaults included, as YAML that `load_run` reads back to an equal `RunConfig`."""
    return dump_text(config.model_dump(mode="json"))


def _read_extended(path: Path, chain: tuple[Path, ...]) -> Document:
    """The file at `path` over the file that it extends, and so on up; `chain` holds the files that led here."""
    resolved = path.resolve()
    if resolved in chain:
        names = " -> ".join(one.name for one in (*chain[chain.index(resolved) :], resolved))
        raise ConfigError(f"{chain[-1]}: extends={path.name!r}: files extend each other in a circle: {names}")
    document = read_document(path)
    parent = document.data.pop("extends", None)
    if parent is None:
        return document
    if not isinstance(parent, str) or not parent.strip():
        origin = document.origins[("extends",)]
        raise ConfigError(
            f"{origin}: extends={parent!r}: must be the path of one other YAML file, relative to this one"
        )
    below = path.parent / parent
    if not below.is_file():
        origin = document.origins[("extends",)]
        raise ConfigError(f"{origin}: extends={parent!r}: no such file: {below}")
    base = _read_extended(below, (*chain, resolved))
    problems: list[str] = []

    def nothing(key: Key) -> None:
        problems.append(
            f"{document.origins[key]}: {'.'.join(key)}=null: there is nothing to take away; {path.name} inherits no "
            "such key, so leave it out"
        )

    data = merge(base.data, document.data, nothing=nothing)
    if problems:
        raise ConfigError("\n".join(problems))
    return Document(data, {**base.origins, **document.origins})


def _apply(document: Document, override: str) -> None:
    """Lay one "key.sub=value" over the document."""
    key, equals, text = override.partition("=")
    names = tuple(key.split("."))
    secret = hidden(names, override)
    shown = f"{key}={HIDDEN}" if secret else override
    if not equals or not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in names):
        raise ConfigError(f"override: {shown!r}: must have the form key.sub=value, such as ppo.iterations=3")
    if names[0] == "extends":
        raise ConfigError(f"override: {override!r}: extends stands in a run file, not on the command line")
    value = parse_value(key, text, HIDDEN if secret else None)
    section = document.data
    for depth, name in enumerate(names[:-1], start=1):
        inner = section.setdefault(name, {})
        if not isinstance(inner, dict):
            holder = ".".join(names[:depth])
            value_shown = HIDDEN if hidden(names[:depth], str(inner)) else inner
            raise ConfigError(
                f"override: {shown!r}: {holder}={value_shown!r} is a single value and has no keys of its own"
            )
        section = inner
    over = merge(section, {names[-1]: value}, names[:-1])
    section.clear()
    section.update(over)
    _mark(document.origins, names, value)


def _mark(origins: dict[Key, str], key: Key, value: Any) -> None:
    origins[key] = "override"
    if isinstance(value, dict):
        for name, inner in value.items():
            _mark(origins, (*key, name), inner)


def _expand(value: Any, key: Key, origins: Mapping[Key, str], where: str, problems: list[str]) -> Any:
    """A copy of the tree with `~` and ${VAR} replaced in path fields; unset variables go to `problems`."""
    if isinstance(value, Mapping):
        return {name: _expand(inner, (*key, name), origins, where, problems) for name, inner in value.items()}
    dotted = ".".join(key)
    if isinstance(value, list) and is_path_key(dotted):
        return [_expand(inner, key, origins, where, problems) for inner in value]
    if not isinstance(value, str) or not is_path_key(dotted):
        return value

    def variable(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], "")
        if not found:
            origin = origins.get(key, where)
            problems.append(
                f"{origin}: {dotted}={value!r}: the environment variable {match[1]!r} is not set; export it"
            )
        return found or match[0]

    return os.path.expanduser(_VARIABLE.sub(variable, value))
