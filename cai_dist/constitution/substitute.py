"""Filling templates with hostile text: one pass, so that what is put in is never looked at again."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SLOT = re.compile(r"\{([a-z_]+)\}")


def slots(template: str) -> list[str]:
    """The names in braces, in order, with repetitions."""
    return _SLOT.findall(template)


def substitute(template: str, values: Mapping[str, str]) -> str:
    """Replace each `{name}` of `template` by `values[name]`.

    The values are not searched for slots: an answer that contains `{b}` stays as it is. Raises KeyError for a slot
    without a value.
    """
    return _SLOT.sub(lambda match: values[match.group(1)], template)
