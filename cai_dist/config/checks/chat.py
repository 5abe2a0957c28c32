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


_SWITCHES = ("off", "no", "false", "on", "yes", "true")
"""Texts that were meant as true or false; a template takes every one of them as true."""


def chat_problems(arguments: Mapping[str, object], day: str | None, mode: str = "template") -> list[str]:
    """One line for each of `models.chat_arguments` and for `models.chat_date` where it cannot be used with
    `models.chat` `mode`."""
    problems = []
    if mode == "plain" and (arguments or day is not None):
        problems.append(
            f"{'chat_arguments' if arguments else 'chat_date'}: chat=plain uses no template; leave it out or set "
            "chat=template"
        )
    for name, value in arguments.items():
        shown = f"chat_arguments.{name}={value!r}"
        if name in _OURS or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            problems.append(f"{shown}: must be a variable of the chat template, such as enable_thinking")
        elif isinstance(value, str) and value.lower() in _SWITCHES:
            problems.append(f"{shown}: is a text, which a template takes as true; must be true or false")
        elif name in _THINKING and value is not False:
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
