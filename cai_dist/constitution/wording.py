"""What the words of a principle ask for: rules of thumb for `cai-dist constitution lint`, each of which may be wrong.

They read English; of a principle in another language they find nothing.
"""

from __future__ import annotations

import re

SHINGLE = 3
"""Words that are compared together."""
_WORD = re.compile(r"\w+(?:'\w+)?")
_HARM = (
    r"(?:harm(?:s|ful|fully|fulness)?|danger(?:s|ous|ously)?|injur(?:y|ies|ious)|damag(?:e|es|ing)|accidents?|peril(?:ous)?"
    r"|insult(?:s|ing)?|mocker(?:y|ies)|scorn(?:ful)?|spite(?:ful)?|contempt(?:uous)?|evil|wrong|sins?|sinful|vices?"
    r"|ill|toxic(?:ity)?|racis[tm]|sexis[tm]|discriminat(?:ion|ory)|prejudiced?|illegal(?:ity)?|unlawful|criminal"
    r"|unethical|immoral|offensive|offence|rude(?:ness)?|cruel(?:ty)?|violen(?:t|ce)|hateful|threat(?:s|ening)?"
    r"|abus(?:e|ive)|decei(?:t|tful)|deceptive|manipulative|dishonest|hurtful)"
)
_GOOD = r"(?:harmless|safe|ethical|moral|honest|truthful|lawful|polite|kind|respectful|peaceful|acceptable)"
_BETWEEN = r"(?:(?:of|an?|the|to|be|is|it|likely|do|does|cause|causes|very)\s+){0,4}"
_WANTS_HARM = re.compile(
    rf"\b(?:more|most|greater|greatest)\s+{_BETWEEN}{_HARM}\b|\b(?:less|least)\s+{_GOOD}\b"
    r"|\b(?:choose|pick|prefer)\s+(?:the\s+)?wors[et]\b|\bwhich\b[^.?!]{0,40}\bis\s+(?:the\s+)?wors[et]\b",
    re.IGNORECASE,
)
_NEGATED = re.compile(r"\b(?:no|not|never|without|nor|avoid\w*|less|least|\w+n't)\W+(?:\w+\W+){0,3}$", re.IGNORECASE)
_REFUSES = re.compile(r"\b(?:refus(?:e|es|ed|al|ing)|declin(?:e|es|ed|ing)|reject(?:s|ed|ing)?)\b", re.IGNORECASE)
_REASON = re.compile(
    r"\b(?:why|because|reasons?|explain\w*|explanation|instead|offer\w*|alternatives?|understand\w*|rather than)\b",
    re.IGNORECASE,
)
_AGAINST_OVER_REACTION = re.compile(
    r"\b(?:evas\w+|dodg\w+|excuses?|stock|needless|unhelpful|engag\w+|preach\w*|sermons?|lectur\w+|scold\w*|moraliz\w+"
    r"|condescen\w+|over-?\s?react\w*|reactive|obnoxious|accus\w+|judg(?:e)?mental|helpful|useful)\b",
    re.IGNORECASE,
)


def words(text: str) -> tuple[str, ...]:
    """The words of `text` in lower case, without punctuation."""
    return tuple(_WORD.findall(text.lower()))


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the two texts' runs of three words, from 0 to 1; 1 where they differ in case and
    punctuation alone."""
    first, second = _shingles(one), _shingles(other)
    return len(first & second) / len(first | second) if first or second else 1.0


def asks_for_harm(text: str) -> str | None:
    """The passage that prefers the worse of two things ("more harmful", "less honest"), if there is one.

    A passage after a negation ("without being more harmful") does not count.
    """
    for found in _WANTS_HARM.finditer(text):
        if not _NEGATED.search(text[: found.start()]):
            return found[0]
    return None


def refuses_without_reason(text: str) -> bool:
    """Whether `text` asks for a refusal and neither for a reason nor for something in its place."""
    return bool(_REFUSES.search(text)) and not _REASON.search(text)


def counts_over_reaction(text: str) -> bool:
    """Whether `text` holds evasion, sermons or uselessness against an answer (the remedy of paper section 4.3)."""
    return bool(_AGAINST_OVER_REACTION.search(text))


def _shingles(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    if len(found) < SHINGLE:
        return {found} if found else set()
    return {found[i : i + SHINGLE] for i in range(len(found) - SHINGLE + 1)}
