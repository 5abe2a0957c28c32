"""One tree of settings laid over another: a run file over the one that it extends, an override over a file.

Sections merge key by key. Null is the value of a setting that may be null; elsewhere it takes away what was inherited,
and the key has its default again. Everything else, lists too, replaces what was there.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, Union, get_args, get_origin

from cai_dist.config.base import Section
from cai_dist.config.loading.yaml_text import Key
from cai_dist.config.run import RunConfig


def merge(
    base: Mapping[str, Any], over: Mapping[str, Any], key: Key = (), nothing: Callable[[Key], None] = lambda key: None
) -> dict[str, Any]:
    """`over` laid over `base`, both from the section at `key` of a run.

    `nothing` is told the key of a null that takes nothing away. Such a null, and an unknown key, stay as they are
    written, for validation to find.
    """
    merged = dict(base)
    for name, value in over.items():
        here, below = (*key, name), merged.get(name)
        if value is None and takes_null(here) is False:
            if name in merged:
                del merged[name]
            else:
                merged[name] = None
                nothing(here)
        elif isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[name] = merge(below, value, here, nothing)
        else:
            merged[name] = value
    return merged


def takes_null(key: Key) -> bool | None:
    """Whether null is a value of the setting at `key`; None for a key that is not known."""
    kinds: tuple[Any, ...] = (RunConfig,)
    for name in key:
        inner = next(filter(None, (_below(kind, name) for kind in kinds)), None)
        if inner is None:
            return None
        kinds = inner
    return types.NoneType in kinds or Any in kinds


def _below(kind: Any, name: str) -> tuple[Any, ...] | None:
    """The kinds of value that `kind` has at `name`; None where it has no such key."""
    if isinstance(kind, type) and issubclass(kind, Section):
        field = kind.model_fields.get(name)
        return None if field is None else _kinds(field.annotation)
    if get_origin(kind) is dict:
        return _kinds(get_args(kind)[1])
    return (Any,) if kind is Any else None


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
