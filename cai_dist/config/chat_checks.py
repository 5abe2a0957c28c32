"""What chat templates may be given: refused here, before any model is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date

_OURS = frozenset(
    (
        *("conversation", "messages", "tools", "documents", "chat_template", "tokenizer_kwargs", "strftime_now"),
        *("add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask"),
        *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    )
)
"""What rendering a chat is steered by, and what the template may not be told in place of that."""
_THINKING = ("enable_thinking", "thinking")


def chat_problems(arguments: Mapping[str, object], day: str | None) -> list[str]:
    """One line for each of `models.chat_arguments` and for `models.chat_date` where it cannot be used."""
    problems = []
    for name, value in arguments.items():
        shown = f"chat_arguments.{name}={value!r}"
        if name in _OURS or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            problems.append(f"{shown}: must be a variable of the chat template, such as enable_thinking")
        elif name in _THINKING and value is True:
            problems.append(
                f"{shown}: answers are sampled, trained and judged without thoughts; must be false or left out"
            )
    try:
        valid = day is None or date.fromisoformat(day).isoformat() == day
    except ValueError:
        valid = False
    if not valid:
        problems.append(f"chat_date={day!r}: must be a day as YYYY-MM-DD")
    return problems
