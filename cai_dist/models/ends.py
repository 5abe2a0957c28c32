"""The tokens at which a model's own files say that generation ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from cai_dist.errors import DataError
from cai_dist.models.adapter import base_of

_FILES = ("generation_config.json", "config.json")


def end_ids(source: str) -> tuple[int, ...]:
    """`eos_token_id` of generation_config.json and config.json (of its text part, too) beside a model (a local folder
    or a hub name), in that order, each id once; an adapter's base is looked at, too. A file that is not there says
    nothing.

    Chat models often end a turn with a token that is named in generation_config.json alone. Raises DataError where a
    file is malformed.
    """
    base = base_of(source)
    found: dict[int, None] = {}
    for place, name in [(place, name) for place in dict.fromkeys((source, base)) for name in _FILES]:
        data = _read(place, name)
        for part in (data, data.get("text_config")):
            said = part.get("eos_token_id") if isinstance(part, dict) else None
            for one in said if isinstance(said, list) else [said]:
                if one is None:
                    continue
                if isinstance(one, bool) or not isinstance(one, int) or one < 0:
                    raise DataError(
                        f"{place}: {name}: eos_token_id={said!r}: must be a token id or a list of token ids"
                    )
                found[one] = None
    return tuple(found)


def _read(source: str, name: str) -> dict[str, Any]:
    path = Path(source) / name if Path(source).is_dir() else _of_hub(source, name)
    if path is None or not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    return data if isinstance(data, dict) else {}


def _of_hub(source: str, name: str) -> Path | None:
    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: cannot read {name}: {' '.join(str(error).split())[:200]}") from error
    return None if found is None else Path(found)
