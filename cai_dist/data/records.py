"""One record of a data set, with its place for messages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cai_dist.errors import DataError


@dataclass(frozen=True, slots=True)
class Record:
    """One record; `place` is the file with its line (or row) number, 1-based."""

    place: str
    data: dict[str, Any]
    typed: bool = True
    """False where every value is a text (CSV): there, numbers, truth values and lists are read from their texts."""

    def text(self, key: str) -> str:
        """The text under `key`. Raises DataError naming the place where it is missing or no text."""
        value = self.data.get(key)
        if not isinstance(value, str):
            raise DataError(f"{self.place}: {key!r} must be a text, found {kind(value, key in self.data)}")
        return value

    def value(self, key: str) -> Any:
        """The value under `key`, None where there is none; of an untyped record what its text says in JSON."""
        value = self.data.get(key)
        if self.typed or not isinstance(value, str):
            return value
        try:
            return json.loads(value.lower() if value in ("True", "False") else value)
        except (ValueError, RecursionError):
            return value if value.strip() else None


def kind(value: object, there: bool = True) -> str:
    """What a value is, in a message: "a text", "a list", "nothing"."""
    names = {str: "a text", bool: "true/false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "null") if there else "nothing"
