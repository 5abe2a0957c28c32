"""How an answer in words names an option: "A", "(A", "**A**", "The answer is: A.", and not "A good answer"."""

from __future__ import annotations

import re
from collections.abc import Sequence

LEAD = "the answer is"
_OPENING = re.compile(r"^the\s+answer\s+is(?![^\W_])[\W_]*", re.IGNORECASE)
AS_OPTION = r"(?![^\W_])(?!['’][^\W_])(?=\s*(?:$|[^\w\s]|_)|[^\S\n]*\n|\s+(?:is|because|since|over)\b)"
"""Behind a label that is a word as well: the end, a sign, a line's end or one of a few words."""
_WORDS = ("a", "i")
"""Letters that are words of their own: before any other word they name no option, as in "A good answer"."""


def core(label: str) -> str:
    """The letters and digits of a label with what stands between them: "A" of "(A)"."""
    return re.sub(r"^[\W_]+|[\W_]+$", "", label) or label.strip()


def names(said: str, cores: Sequence[str]) -> int | None:
    """The option that an answer that begins with `said` names, if it does so already; what follows may yet make a word
    of its letter (`keeps`)."""
    text = _rest(said)
    for option, word in enumerate(cores):
        if re.match(rf"{re.escape(word)}(?![^\W_])", text):  # "a" is a word, "A" hardly ever
            return option
    return None


def keeps(said: str, cores: Sequence[str]) -> bool:
    """Whether the answer `said`, which names an option, still does so with all that follows the letter."""
    option, text = names(said, cores), _rest(said)
    if option is None:
        return False
    word = cores[option]
    return word.casefold() not in _WORDS or re.match(re.escape(word) + AS_OPTION, text) is not None


def says_nothing(said: str, cores: Sequence[str]) -> bool:
    """Whether `said` may still become either option: nothing but signs, or the beginning of an opening or a label."""
    text = _rest(said)
    begun = " ".join(text.split())
    opening = LEAD.startswith(begun.casefold()) or any(word.startswith(begun) for word in cores)
    return opening and names(said, cores) is None


def _rest(said: str) -> str:
    """What an answer says after an opening of the kind "The answer is:"."""
    text = re.sub(r"^[\W_]+", "", said)
    return _OPENING.sub("", text, count=1)
