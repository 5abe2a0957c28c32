"""Thoughts of reasoning models: the part of what a model wrote that stands before its answer.

Only what a response *begins* with counts as thoughts: a mark further on is part of the answer, so that no model can
hide the first half of an answer from its judge by writing one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Pairs = tuple[tuple[str, str], ...]
MARKS: tuple[tuple[str, str, str], ...] = (
    ("<think>", "</think>", "</think>"),
    ("<thinking>", "</thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>", "<|END_THINKING|>"),
    ("<|start_thinking|>", "<|end_thinking|>", "<|end_thinking|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|channel|>"),
    ("<|channel>thought", "<channel|>", "<|channel>"),
    ("◁think▷", "◁/think▷", "◁/think▷"),
)
"""How thoughts open and close in the models that have them (Qwen, DeepSeek, GLM, Nemotron; Magistral; Seed-OSS;
Command A; gpt-oss; Gemma 4; Kimi), and what their tokenizer or chat template is known by."""
_SPACE = ("\n\n", "\n", " ", "")


@dataclass(frozen=True, slots=True)
class ThoughtIds:
    """Marks of thoughts as token ids of one tokenizer: (ids that open thoughts, ids that close them)."""

    marks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()

    def split(self, ids: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(thoughts with their marks, answer). Thoughts that are never closed are all there is: the answer is empty."""
        whole = tuple(ids)
        for opening in sorted({o for o, _ in self.marks}, key=len, reverse=True):
            if whole[: len(opening)] != opening:
                continue
            for at in range(len(opening), len(whole)):
                for closing in (c for o, c in self.marks if o == opening):
                    if whole[at : at + len(closing)] == closing:
                        return whole[: at + len(closing)], whole[at + len(closing) :]
            return whole, ()
        return (), whole


NO_THOUGHTS = ThoughtIds()
"""Of a model that has no such marks."""


def thought_marks(tokenizer: Any, template: str = "") -> Pairs:
    """The pairs of marks that a model has: those that its chat template speaks of or that are tokens of their own."""
    added = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    return tuple((o, c) for o, c, known_by in MARKS if known_by in template or known_by in added)


def thought_ids(tokenizer: Any, marks: Pairs) -> ThoughtIds:
    """The marks that `tokenizer` can say, with the white space that models put behind them, the longest first."""

    def spelled(mark: str) -> list[tuple[int, ...]]:
        found = [tuple(tokenizer(mark + space, add_special_tokens=False)["input_ids"]) for space in _SPACE]
        known = [ids for ids in found if ids and _squeezed(tokenizer.decode(list(ids))) == _squeezed(mark)]
        return sorted(dict.fromkeys(known), key=len, reverse=True)

    return ThoughtIds(tuple((o, c) for opening, closing in marks for o in spelled(opening) for c in spelled(closing)))


def split_thoughts(text: str, marks: Pairs) -> tuple[str, str]:
    """(thoughts, answer) of a response in words, both stripped, without the marks."""
    text = text.strip()
    for opening, closing in marks:
        if text.startswith(opening):
            thoughts, _, answer = text.removeprefix(opening).partition(closing)
            return thoughts.strip(), answer.strip()
    return "", text


def left_open(text: str) -> bool:
    """Whether `text`, which goes before an answer, opens thoughts and does not close them."""
    return any(text.rfind(opening) > text.rfind(closing) for opening, closing, _ in MARKS if opening in text)


def closes(text: str) -> bool:
    """Whether `text` is closed thoughts, or ends some."""
    return not left_open(text) and any(closing in text for _, closing, _ in MARKS)


def _squeezed(text: str) -> str:
    return "".join(text.split())
