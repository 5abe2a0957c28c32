"""Turns pydantic's findings into one plain line for each problem: where it was written, key, value, what is allowed."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError

from cai_dist.config.base import Section
from cai_dist.config.loading.yaml_text import Key
from cai_dist.config.run import RunConfig
from cai_dist.registry import PATH_PATTERN

_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text (quote it if it looks like a number)",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("greater than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
MAX_SHOWN = 80
MAX_PROBLEMS = 50
"""Keys that are described; to find the nearest known key takes milliseconds for each."""
_SECRET_KEY = re.compile(r"key|token|passw|secret|credential|bearer|authorization", re.IGNORECASE)
_SECRET = re.compile(r"\b(?:sk|gsk|hf|xai|ghp)[-_][\w-]{8,}|(?<=://)[^/\s]*@")
"""A key as providers write them, or the name and password of an address."""
HIDDEN = "(not shown: it may be a secret)"


def describe_problems(error: ValidationError, origins: Mapping[Key, str], where: str) -> list[str]:
    """One line for each problem in `error`; alternatives of one field (unions) share a line.

    `origins` maps key paths to "file:line" or "override"; `where` stands in for keys that nobody wrote.
    """
    grouped: dict[Key, list[Any]] = {}
    for item in error.errors(include_url=False):
        if item["loc"][-1:] == ("str",) and isinstance(item["input"], Mapping):
            continue  # of "a text or a section", what is wrong inside the section is said, not that it is no text
        loc = item["loc"]
        too_short = item["type"] == "missing" and isinstance(loc[-1], int)  # an entry of a fixed-length list
        grouped.setdefault(_key_path(loc[:-1] if too_short else loc), []).append(item)
    lines: list[str] = []
    for key, items in list(grouped.items())[:MAX_PROBLEMS]:
        origin = _origin(key, origins, where)
        lines += [f"{origin}: {text}" for text in _texts(key, items)]
    if (more := len(grouped) - MAX_PROBLEMS) > 0:
        lines.append(f"{where}: {more} more keys are wrong")
    return lines


def _texts(key: Key, items: list[Any]) -> Iterator[str]:
    first, dotted = items[0], ".".join(key)
    if first["type"] == "extra_forbidden":
        yield f"{dotted}={_shown(key, first['input'])}: unknown key; {_suggestion(key)}"
    elif first["type"] == "missing" and isinstance(first["loc"][-1], str):
        yield f"{dotted}: missing; this key must be given"
    elif first["type"] == "model_type" and len(items) == 1:
        yield f"{dotted}={_shown(key, first['input'])}: must be a section with keys: {', '.join(section_keys(key))}"
    elif first["type"] == "value_error":
        # Validators of sections start each line of their message with the key inside the section (see `Section`).
        prefix = f"{dotted}." if dotted else ""
        yield from (f"{prefix}{line}" for line in str(first["ctx"]["error"]).splitlines())
    else:
        allowed = dict.fromkeys(_allowed(item) for item in items)
        yield f"{dotted}={_shown(key, first['input'])}: must be {' or '.join(allowed)}"


def _allowed(item: Any) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "model_type":
        return "a section"
    if kind in _TYPES:
        return _TYPES[kind]
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        return f"{words} {context[name]:g}"
    if kind == "literal_error":
        expected = str(context["expected"])
        return f"one of {expected}" if " or " in expected or "," in expected else expected
    if kind == "string_pattern_mismatch" and context["pattern"] == PATH_PATTERN:
        return "package.module:object"
    if kind == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    if kind in ("too_long", "too_short"):
        return f"a list of {context.get('max_length', context.get('min_length'))}"
    if kind == "missing":
        return "a longer list"
    return str(item["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")


def _key_path(loc: tuple[int | str, ...]) -> Key:
    """The dotted key of an error's location, without the tags that pydantic adds for the members of a union."""
    key: list[str] = []
    model: type[Section] | None = RunConfig
    tagged = False
    for part in loc:
        if tagged:
            tagged = False
        elif model is not None:
            key.append(str(part))
            field = model.model_fields.get(str(part))
            model = None if field is None else _section(field.annotation)
            # Of "a text or a section" pydantic says, as the next part, which of them it has tried.
            tagged = model is not None and field is not None and str in get_args(field.annotation)
        elif isinstance(part, int):
            key.append(str(part))
    return tuple(key)


def _section(annotation: Any) -> type[Section] | None:
    """The Section that a field's annotation names, if it does."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((one for one in options if isinstance(one, type) and issubclass(one, Section)), None)


def section_keys(key: Key) -> list[str]:
    """Names of the keys of the section at `key`; empty where there is no section."""
    model: type[Section] | None = RunConfig
    for name in key:
        field = None if model is None else model.model_fields.get(name)
        model = None if field is None else _section(field.annotation)
    return [] if model is None else list(model.model_fields)


def all_keys(model: type[Section] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of the tree, sections included."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        inner = _section(field.annotation)
        keys += [] if inner is None else all_keys(inner, f"{prefix}{name}.")
    return keys


def _suggestion(key: Key) -> str:
    """The nearest valid key: a sibling first, then the same name under the nearest section, then any key."""
    siblings = section_keys(key[:-1])
    near = difflib.get_close_matches(key[-1], siblings, 1, 0.7)
    if near:
        return f"did you mean {'.'.join((*key[:-1], near[0]))}?"
    keys, dotted = all_keys(), ".".join(key)
    same_name = [one for one in keys if one.rpartition(".")[2] == key[-1]]
    near = difflib.get_close_matches(dotted, same_name, 1, 0.0) or difflib.get_close_matches(dotted, keys, 1, 0.75)
    known = f"known here: {', '.join(siblings)}" if siblings else "see docs for the keys of a run"
    return f"did you mean {near[0]}?" if near else known


def _origin(key: Key, origins: Mapping[Key, str], where: str) -> str:
    """Where `key`, or the nearest section around it, was written."""
    for length in range(len(key), 0, -1):
        if key[:length] in origins:
            return origins[key[:length]]
    return where


def _shown(key: Key, value: Any) -> str:
    """The value on one line, cut to a readable length; not where it may be a secret (see `hidden`)."""
    if hidden(key) or _holds_secret(value):
        return HIDDEN
    text = " ".join(repr(value).split())
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def hidden(key: Key, value: str = "") -> bool:
    """Whether no message may repeat what was given for `key`: all of `feedback.endpoint`, whatever is called a key, a
    token or a password (but for known keys such as `max_new_tokens`), and a `value` that looks like a secret."""
    named = any(_SECRET_KEY.search(part) for part in key) and ".".join(key) not in all_keys()
    return key[:2] == ("feedback", "endpoint") or named or _SECRET.search(value) is not None


def _holds_secret(value: Any) -> bool:
    """Whether a value, or anything in it, looks like a secret or is called one."""
    if isinstance(value, Mapping):
        return any(name == "endpoint" or _SECRET_KEY.search(str(name)) or _holds_secret(x) for name, x in value.items())
    if isinstance(value, list | tuple):
        return any(map(_holds_secret, value))
    return isinstance(value, str) and _SECRET.search(value) is not None
