"""Reading what a model wrote. All of it is hostile: empty, endless, or a play with every part in it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

from cai_dist.constitution.schema import Labels
from cai_dist.types import Speaker, Turn

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
    cut: bool = field(default=False, compare=False)
    """Whether the model went on to play another part after it."""


def clean_answer(
    text: str, labels: Labels | None = None, forbidden: Collection[str] = (), human: bool = False
) -> Parsed:
    """The model's own part of `text`: stripped, without a repeated label in front, cut where it starts another part.

    A part starts at a line that opens with one of `labels` (default: the usual ones, as in "\\n\\nHuman:").
    `forbidden` are texts that must not come back word for word, such as the revisions of the worked examples. With
    `human` the model was to write a human's turn, and its own label is that one's.
    """
    own, other = _patterns(labels or Labels(), human)
    answer = own.sub("", text.strip(), count=1)
    found = other.search(answer)
    answer = (answer[: found.start()] if found else answer).strip()
    cut = found is not None
    if not answer:
        return Parsed(None, ParseFailure.EMPTY, cut)
    if _loops(answer.split()):
        return Parsed(None, ParseFailure.RUNAWAY, cut)
    if answer in forbidden:
        return Parsed(None, ParseFailure.COPY, cut)
    return Parsed(answer, None, cut)


def split_dialogue(text: str, markers: Mapping[str, Speaker]) -> list[Turn]:
    """Split "\\n\\nHuman: … \\n\\nAssistant: …" into turns with stripped texts (which may be empty).

    A marker counts at the start of the text or after a blank line. Text before the first marker makes the result empty:
    that is no dialogue.
    """
    names = "|".join(re.escape(name) for name in sorted(markers, key=len, reverse=True))
    found = [m for m in re.finditer(rf"({names}):", text) if _opens_a_part(text, m.start())]
    if not found or text[: found[0].start()].strip():
        return []
    ends = [m.start() for m in found[1:]] + [len(text)]
    return [Turn(markers[m[1]], text[m.end() : end].strip()) for m, end in zip(found, ends, strict=True)]


def _opens_a_part(text: str, place: int) -> bool:
    """Whether nothing but white space with a blank line in it, or the start of the text, is before `place`.

    Walked back by hand: one pattern for blank lines and marker takes quadratic time on a text of line ends.
    """
    start = place
    while start and text[start - 1].isspace():
        start -= 1
    return start == 0 or _BLANK_LINE.search(text, start, place) is not None


_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")


@lru_cache(maxsize=16)
def _patterns(labels: Labels, human: bool) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """(a label of one's own at the very start, a label of anybody's at the start of a line)."""
    spoken = [labels.assistant, labels.critique, labels.revision]
    own = [labels.human] if human else spoken
    other = [*spoken, labels.human, labels.critique_request, labels.revision_request]
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
