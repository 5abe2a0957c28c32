"""Reading what a model wrote. All of it is hostile: empty, endless, or a play with every part in it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from cai_dist.constitution.schema import Labels
from cai_dist.types import Role, Turn

LONGEST_BLOCK = 16
"""Words in a repeated block that still counts as a loop."""
LOOP_REPEATS = 4
LOOP_WORDS = 24
"""A loop is one block said LOOP_REPEATS times or more in a row, over LOOP_WORDS words or more."""


class ParseFailure(StrEnum):
    """Why a text cannot be used. Stages count these and never train on such a text."""

    EMPTY = "empty"
    """Nothing but white space, or nothing before the model went on to play another part."""
    RUNAWAY = "runaway"
    """The model fell into a loop."""
    COPY = "copy"
    """Word for word a worked example that it had been shown."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """Exactly one of the two is set: a text that can be used, or why there is none."""

    text: str | None
    failure: ParseFailure | None = None


def clean_answer(text: str, labels: Labels | None = None, forbidden: Collection[str] = ()) -> Parsed:
    """The model's own part of `text`: stripped, without a repeated label in front, cut where it starts another part.

    A part starts at a line that opens with one of `labels` (default: the usual ones, as in "\\n\\nHuman:").
    `forbidden` are texts that must not come back word for word, such as the revisions of the worked examples.
    """
    own, other = _patterns(labels or Labels())
    answer = own.sub("", text.strip(), count=1)
    if found := other.search(answer):
        answer = answer[: found.start()]
    answer = answer.strip()
    if not answer:
        return Parsed(None, ParseFailure.EMPTY)
    if _loops(answer.split()):
        return Parsed(None, ParseFailure.RUNAWAY)
    if answer in forbidden:
        return Parsed(None, ParseFailure.COPY)
    return Parsed(answer)


def split_dialogue(text: str, markers: Mapping[str, Role]) -> list[Turn]:
    """Split "\\n\\nHuman: … \\n\\nAssistant: …" into turns with stripped texts (which may be empty).

    A marker counts at the start of the text or after a blank line. Text before the first marker makes the result empty:
    that is no dialogue.
    """
    names = "|".join(re.escape(name) for name in sorted(markers, key=len, reverse=True))
    pieces = re.split(rf"(?:\A\s*|\n[ \t\r]*\n\s*)({names}):", text)
    if pieces[0].strip():
        return []
    return [Turn(markers[name], body.strip()) for name, body in zip(pieces[1::2], pieces[2::2], strict=True)]


@lru_cache(maxsize=16)
def _patterns(labels: Labels) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """(a label of one's own at the very start, a label of anybody's at the start of a line)."""
    own = [labels.assistant, labels.critique, labels.revision]
    other = [*own, labels.human, labels.critique_request, labels.revision_request]
    return re.compile(rf"\A(?:{_any(own)})\s*"), re.compile(rf"(?:\A|\n)[ \t]*(?:{_any(other)})")


def _any(labels: list[str]) -> str:
    """Matches one of the labels; "(?!)" (which matches nothing) where all are empty."""
    return "|".join(re.escape(label.strip()) for label in labels if label.strip()) or "(?!)"


def _loops(words: list[str]) -> bool:
    """Whether some block of 1 … LONGEST_BLOCK words is said again and again."""
    for size in range(1, LONGEST_BLOCK + 1):
        run = 0
        for i in range(size, len(words)):
            run = run + 1 if words[i] == words[i - size] else 0
            if run + size >= max(LOOP_WORDS, LOOP_REPEATS * size):
                return True
    return False
