"""YAML as run files use it: the core types of YAML 1.2, no duplicate keys, and the line that each key stands on.

Departures from PyYAML's safe_load, each because it bites in configurations: `1e-5` is a number (not text), `off`, `on`,
`yes`, `no` are text (not booleans: `tracking.wandb: off`), dates and `1:30` stay text, a key given twice is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cai_dist.errors import ConfigError

Key = tuple[str, ...]
MAX_DEPTH = 32
MAX_VALUES = 100_000
"""Values of a file with every alias written out; an alias of aliases can stand for more than any machine holds."""


@dataclass(slots=True)
class Document:
    """A mapping read from a file, with `file:line` of every key path in it."""

    data: dict[str, Any]
    origins: dict[Key, str]


class _CoreLoader(yaml.SafeLoader):
    """Resolves null, true/false, integers and floats; every other plain scalar is text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


def _number(value: str) -> int:
    return int(value.replace("_", ""), 0) if value.lower().lstrip("+-").startswith(("0x", "0o")) else int(value)


_CoreLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_CoreLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_CoreLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"(?:[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_CoreLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
_CoreLoader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<$"), ["<"])
_CoreLoader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: _number(str(node.value)))


class _CoreDumper(yaml.SafeDumper):
    """Quotes exactly the text that `_CoreLoader` would take for something else; writes no aliases."""

    yaml_implicit_resolvers = _CoreLoader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        """Single quotes would fold NEL and the like (they count as line ends); double quotes spell them out."""
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_CoreDumper.add_representer(str, _CoreDumper.represent_text)


def dump_text(data: dict[str, Any]) -> str:
    """Plain values as YAML that `read_document` reads back to equal values."""
    return yaml.dump(data, Dumper=_CoreDumper, sort_keys=False, allow_unicode=True, width=120)


def read_document(path: Path) -> Document:
    """Read one YAML file that holds a mapping. Raises ConfigError (one line, with the line number for bad syntax)."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such run file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; a run file is a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); a run file is a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    origins: dict[Key, str] = {}
    data = _parse(text, str(path), origins)
    if data is None:
        raise ConfigError(f"{path}: is empty; a run file needs at least `name: my-run`")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of keys such as `name: my-run`, not {type(data).__name__}")
    return Document(data, origins)


def parse_value(key: str, text: str, shown: str | None = None) -> Any:
    """The value of an override, typed as YAML types it. Raises ConfigError, which says `shown` in place of the text."""
    try:
        return _parse(text, "override", {})
    except ConfigError:
        raise ConfigError(
            f"override: {key}={shown or repr(text)}: the value is not valid YAML; quote text with special characters, "
            f"as in {key}='\"some: text\"'"
        ) from None


def _parse(text: str, where: str, origins: dict[Key, str]) -> Any:
    try:
        loader = _CoreLoader(text)
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{where}: unreadable character {error.character!r} at position {error.position}") from None
    try:
        node = loader.get_single_node()
        if node is not None and _written_out(node, {}) > MAX_VALUES:
            raise ConfigError(f"{where}: more than {MAX_VALUES} values with its aliases written out; use fewer aliases")
        return None if node is None else _build(loader, node, (), where, origins)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = " ".join(str(error.problem or error.context or "bad syntax").split())
        raise ConfigError(f"{where}{line}: not valid YAML: {problem}") from None
    except ConfigError:  # a ValueError, too
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for where each alias in it counts as what it stands for."""
    if id(node) not in known:
        known[id(node)] = MAX_VALUES  # of a node inside itself
        inside = []
        if isinstance(node, yaml.MappingNode):
            inside = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inside = node.value
        known[id(node)] = 1 + sum(_written_out(part, known) for part in inside)
    return known[id(node)]


def _build(loader: _CoreLoader, node: yaml.Node, key: Key, where: str, origins: dict[Key, str]) -> Any:
    """Plain Python values of a node; notes the line of every mapping key in `origins`."""
    if len(key) > MAX_DEPTH:
        raise ConfigError(
            f"{where}:{node.start_mark.line + 1}: {'.'.join(key[:3])}…: nested too deep, or refers to itself"
        )
    if isinstance(node, yaml.MappingNode):
        _refuse_duplicates(node, key, where)
        loader.flatten_mapping(node)
        built: dict[str, Any] = {}
        for name_node, value_node in node.value:
            name = _name(name_node, key, where)
            origins[(*key, name)] = f"{where}:{name_node.start_mark.line + 1}"
            built[name] = _build(loader, value_node, (*key, name), where, origins)
        return built
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*key, str(index)), where, origins) for index, item in enumerate(node.value)]
    value = loader.construct_object(node)
    if value is not None and not isinstance(value, (str, bool, int, float)):
        line = node.start_mark.line + 1
        raise ConfigError(
            f"{where}:{line}: {'.'.join(key)}: {node.tag} is not a plain value (text, number, true/false, null)"
        )
    return value


def _name(node: yaml.Node, key: Key, where: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(
            f"{where}:{node.start_mark.line + 1}: {'.'.join(key) or 'top level'}: a key must be a plain name"
        )
    name = str(node.value)
    if not name.isprintable():  # it would be shown, and could paint the terminal or write lines of its own
        raise ConfigError(f"{where}:{node.start_mark.line + 1}: {name[:80]!r}: a key must be printable")
    return name


def _refuse_duplicates(node: yaml.MappingNode, key: Key, where: str) -> None:
    seen: dict[str, int] = {}
    for name_node, _ in node.value:
        name, line = _name(name_node, key, where), name_node.start_mark.line + 1
        if name in seen and name != "<<":
            raise ConfigError(f"{where}:{line}: {'.'.join((*key, name))}: given twice, first on line {seen[name]}")
        seen[name] = line
