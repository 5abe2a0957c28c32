"""Texts that say the same, or nearly the same, as an earlier one.

A text is known by its words (case, punctuation and white space count for nothing) and by the set of its 3-grams of
words; how alike two texts are is the Jaccard similarity of their sets, |x ∩ y| / |x ∪ y|.

Why not MinHash: it misses some pairs by chance and needs a library with SciPy behind it, or as many lines as stand
here. Prefix filtering (Chaudhuri et al. 2006; Bayardo et al. 2007) finds every pair, and the same ones each time.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Literal

GRAM = 3
Gram = tuple[str, ...]
_ROUNDING = 1e-9
"""A similarity of exactly the threshold counts, however 0.7 is rounded."""
_WORD = re.compile(r"\w+")


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text in lower case and Unicode's compatible form, without punctuation. (A script that writes no
    spaces gives long "words": there, repetitions are found but hardly near ones.)"""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def grams_of(text: str) -> frozenset[Gram]:
    """The set of a text's 3-grams of words; of a shorter text, all its words as one."""
    words = words_of(text)
    return frozenset(words[i : i + GRAM] for i in range(max(1, len(words) - GRAM + 1)))


class NearDuplicates:
    """A growing collection of texts that can be asked whether it holds one like a given one.

    Two sets with Jaccard similarity t or more share t·|x| grams at least, so that with all grams in one order the
    first |x| - ⌈t·|x|⌉ + 1 of each have one in common: only those are looked up. Rare grams come first in that order,
    because common ones ("how do i") would lead to half of the collection.
    """

    def __init__(self, threshold: float, texts: Iterable[str] = ()) -> None:
        """`threshold` in (0, 1]; `texts` are the first of the collection and say which grams are common."""
        self.threshold = threshold
        sets = [grams_of(text) for text in texts]
        self._count = Counter(gram for grams in sets for gram in grams)
        self._sets: list[frozenset[Gram]] = []
        self._having: dict[Gram, list[int]] = defaultdict(list)
        for grams in sets:
            self._add(grams)

    def add(self, text: str) -> None:
        """Put `text` into the collection."""
        self._add(grams_of(text))

    def has_near(self, text: str) -> bool:
        """Whether the collection holds a text of at least the threshold's similarity."""
        grams = grams_of(text)
        found = {i for gram in self._prefix(grams) for i in self._having.get(gram, ())}
        return any(_similarity(grams, self._sets[i]) >= self.threshold - _ROUNDING for i in found)

    def _add(self, grams: frozenset[Gram]) -> None:
        for gram in self._prefix(grams):
            self._having[gram].append(len(self._sets))
        self._sets.append(grams)

    def _prefix(self, grams: frozenset[Gram]) -> list[Gram]:
        shared = math.ceil(self.threshold * len(grams) - _ROUNDING)
        return sorted(grams, key=lambda gram: (self._count[gram], gram))[: len(grams) - shared + 1]


SHORT = 5
"""A text of fewer 3-grams (under seven words, as "what do you mean?") says too little for what contains it to be like
it."""


class Overlaps:
    """A fixed, small collection of texts that nothing may be near to, or contain, or be a part of.

    Near is the Jaccard similarity, as above. Whether one text is mostly a passage of the other tells the overlap
    coefficient |x ∩ y| / min(|x|, |y|), where both have `SHORT` 3-grams or more.
    """

    def __init__(self, threshold: float, texts: Iterable[str]) -> None:
        self.threshold = threshold
        self._sets = [grams_of(text) for text in texts]
        self._having: dict[Gram, list[int]] = defaultdict(list)
        for i, grams in enumerate(self._sets):
            for gram in grams:
                self._having[gram].append(i)

    def likeness(self, text: str) -> Literal["near", "passage", ""]:
        """How `text` reaches the threshold with one of the collection: `near` goes before `passage`; "": with none."""
        grams = grams_of(text)
        shared = Counter(i for gram in grams for i in self._having.get(gram, ()))
        if any(_similarity(grams, self._sets[i]) >= self.threshold - _ROUNDING for i in shared):
            return "near"
        least = {i: min(len(grams), len(self._sets[i])) for i in shared}
        passage = any(least[i] >= SHORT and n >= self.threshold * least[i] - _ROUNDING for i, n in shared.items())
        return "passage" if passage else ""


def _similarity(x: frozenset[Gram], y: frozenset[Gram]) -> float:
    shared = len(x & y)
    return shared / (len(x) + len(y) - shared)
