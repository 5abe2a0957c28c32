"""The marks that give a chat its form (special tokens, `[/INST]`), and texts that are kept from spelling one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from cai_dist.data.thoughts import thought_marks

_LOOKS_LIKE_A_MARK = re.compile(
    r"<\|[^|<>\s]{1,40}\|?>|</?[A-Za-z][\w:.-]{0,40}\|?>|<<[^<>\n]{1,40}>>|\[/?[A-Z][A-Z_]{1,40}\]|<｜[^｜<>]{1,40}｜>"
)
_PASSES = 4
"""Times that a text is gone through; one is enough unless a mark has white space in it."""


class Marks:
    """What a text must not spell for one tokenizer and, where there is one, its chat template.

    These are the named special tokens, every added token that is special, every added token that the template writes
    or looks for, and the bracketed words that the template puts around messages ("[/INST]", "<<SYS>>"). Words without
    brackets, such as "USER:" of Vicuna's template and "Human:" of the plain form, are words like any: a text may say
    them.

    `template`: the template's source. `frames`: what it writes around the words of a conversation.
    """

    def __init__(self, tokenizer: Any, template: str = "", frames: Iterable[str] = ()) -> None:
        self._tokenizer = tokenizer
        written = "\n".join(frames)
        added = dict(getattr(tokenizer, "added_tokens_decoder", {}))
        self.special_ids = frozenset({*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)})
        """Ids that vanish when text is decoded."""
        own = {i for i, t in added.items() if _is_mark(str(t)) and (str(t) in template or str(t) in written)}
        self.ids = frozenset({*self.special_ids, *own})
        """Ids of special tokens and of those that the template writes."""
        spelled = {*tokenizer.all_special_tokens, *(str(added[i]) for i in self.ids if i in added)}
        spelled |= set(_LOOKS_LIKE_A_MARK.findall(written))
        self.thoughts = thought_marks(tokenizer, template)
        """How thoughts open and close, where this model has marks for them."""
        spelled |= {mark for pair in self.thoughts for mark in pair}
        texts = sorted((t for t in spelled if len(t) > 1), key=lambda t: (-len(t), t))
        self._pattern = re.compile("|".join(map(re.escape, texts))) if texts else None
        # To a tokenizer of few words everything that it does not know is the special token for that.
        self._never = self.ids - {tokenizer.unk_token_id}

    def harmless(self, text: str) -> str:
        """`text` with a space inside everything that spells a mark; other texts come back as they are."""
        broken = self._broken(text)
        if self._spells(broken):  # through the tokenizer's normalisation, such as that of full-width letters
            broken = self._broken(unicodedata.normalize("NFKC", broken))
        if self._spells(broken):
            broken = " ".join(broken)
        return broken

    def first(self, text: str) -> int | None:
        """The first token of `text` that is special or a mark of the template; None where there is none."""
        return next((i for i in self._tokens(text) if i in self.ids), None)

    def before_first(self, text: str) -> str:
        """What stands in `text` before the first such token."""
        found = None if self._pattern is None else self._pattern.search(text)
        while found is not None and self.first(found.group()) is None:  # a mark that is words to the tokenizer
            found = self._pattern.search(text, found.end())  # type: ignore[union-attr]
        return text[: found.start()] if found else text

    def _broken(self, text: str) -> str:
        for _ in range(_PASSES):
            if self._pattern is None or not self._pattern.search(text):
                break
            text = self._pattern.sub(lambda match: f"{match.group()[0]} {match.group()[1:]}", text)
        return text

    def _spells(self, text: str) -> bool:
        return bool(text) and not self._never.isdisjoint(self._tokens(text))

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _is_mark(text: str) -> bool:
    """Whether an added token is a mark, not white space or a word."""
    return len(text) > 1 and not text.isspace() and not text.strip().isalnum()
