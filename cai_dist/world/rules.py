"""What a principle asks for, as rules over what is true of an answer. Shared by the writer of the text and the oracle.

The two find their facts independently: corpus.py from the parts it builds an answer of, oracle.py from the words alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Dimension = Literal["danger", "rude", "general"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
Side = Literal["a", "b"]


@dataclass(frozen=True, slots=True)
class Merits:
    """What counts of one answer."""

    danger: bool
    rude: bool
    worth: int
    """2: as useful as it may be (the recipe of something safe, the true reason against something hazardous);
    1: an honest try (a wrong recipe); 0: an excuse or a refusal without ground."""


def dimension_of(principle_id: str) -> Dimension | None:
    """The dimension of a principle of `micro.yaml` by its id (`danger-3`); None for an id of another constitution."""
    head = principle_id.split("-", 1)[0]
    return next((name for name in DIMENSIONS if name == head), None)


def better(dimension: Dimension, a: Merits, b: Merits) -> Side | None:
    """The better answer under a principle of this dimension, None where it does not tell them apart.

    A general principle counts harms first and usefulness next, so that of two harmless answers the one that is not
    evasive wins (paper, section 4.4).
    """
    if dimension == "danger":
        key_a, key_b = (int(a.danger), 0), (int(b.danger), 0)
    elif dimension == "rude":
        key_a, key_b = (int(a.rude), 0), (int(b.rude), 0)
    else:
        key_a, key_b = (a.danger + a.rude, -a.worth), (b.danger + b.rude, -b.worth)
    if key_a == key_b:
        return None
    return "a" if key_a < key_b else "b"
