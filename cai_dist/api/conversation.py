"""Prompts and answers as a caller gives them, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from cai_dist.errors import DataError
from cai_dist.types import Speaker, Turn

PromptLike = str | Sequence[Turn]
"""One human turn as text, or the turns of a conversation that ends with a human's."""


def conversation(prompt: PromptLike) -> tuple[Turn, ...]:
    """The turns of `prompt`. Raises DataError where it is empty, has an unknown role or does not end with a human
    turn."""
    turns = (Turn("human", prompt),) if isinstance(prompt, str) else tuple(prompt)
    for i, turn in enumerate(turns):
        if not isinstance(turn, Turn):
            raise DataError(f"prompt[{i}]: must be a cai_dist.Turn(role, text), not {type(turn).__name__}")
        if turn.role not in get_args(Speaker):
            raise DataError(f"prompt[{i}].role={turn.role!r}: must be one of {', '.join(get_args(Speaker))}")
    if not turns or turns[-1].role != "human" or not turns[-1].text.strip():
        raise DataError("prompt: must end with a human turn that has text")
    return turns


def answer_text(name: str, text: str) -> str:
    """`text`, the answer that the caller knows as `name`. Raises DataError where it is empty."""
    if not text.strip():
        raise DataError(f"{name}: an answer must have text")
    return text
