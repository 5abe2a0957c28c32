"""Dialogues in the layouts that data sets use, as turns. The words come from anywhere and are made safe to handle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from cai_dist.constitution.parse import split_dialogue
from cai_dist.data.records import Record, kind
from cai_dist.errors import DataError
from cai_dist.types import PromptKind, Speaker, Turn

MARKERS: dict[str, Speaker] = {"Human": "human", "Assistant": "assistant"}
_ROLES: dict[str, Speaker] = {
    "system": "system",
    "user": "human",
    "human": "human",
    "assistant": "assistant",
    "gpt": "assistant",
}
_OTHER_ROLES: dict[str, Speaker] = {
    "developer": "system",
    "prompter": "human",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
_TOOLS = (
    "tool",
    "tools",
    "function",
    "function_call",
    "function_response",
    "tool_call",
    "tool_response",
    "observation",
)


class SkipRecord(Exception):
    """A record that nothing can be made of; its text is the reason, in words that are the same for all such records."""


EMPTY = "the prompt is empty"
EMPTY_TURN = "a turn is empty"
ANSWERED = "the prompt ends with an answer"
NO_HUMAN = "no human turn"


def safe_text(text: str) -> str:
    """`text` without NULs and lone surrogates (which no UTF-8 file takes), with plain line ends, stripped."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole.replace("\x00", "").replace("\r\n", "\n").replace("\r", "\n").strip()


def dialogue(text: str) -> list[Turn]:
    """Turns of "\\n\\nHuman: … \\n\\nAssistant: …"; empty where the text does not start with such a label."""
    return split_dialogue(safe_text(text), MARKERS)


def text_turns(text: str) -> list[Turn]:
    """The turns of a prompt's text: those of its Human/Assistant labels, else one human turn. A label at the very end
    that opens the answer is no turn."""
    plain = safe_text(text)
    turns = split_dialogue(plain, MARKERS)
    if turns and turns[-1].role == "assistant" and not turns[-1].text:
        turns.pop()  # "… \n\nAssistant:" opens the answer
    return turns or [Turn("human", plain)]


def message_turns(record: Record, key: str) -> list[Turn]:
    """The turns of a list of {role, content} (OpenAI, TRL) or {from, value} (ShareGPT) under `key`, or of one of them.

    Raises DataError for what is no such list, SkipRecord for turns of tools and for pictures.
    """
    value = record.value(key)
    if isinstance(value, dict):
        value = _transposed(value) or [value]
    if not isinstance(value, list):
        raise DataError(f"{record.place}: {key!r} must be a list of {{role, content}}, found {kind(value)}")
    return [_message(record, f"{key}[{i}]", message) for i, message in enumerate(value)]


def turns_of(record: Record, key: str) -> list[Turn]:
    """The turns under `key`: a text, a text with Human/Assistant labels, or a list of messages.

    Raises DataError for anything else, SkipRecord as `message_turns`.
    """
    value = record.data.get(key)
    listed = isinstance(value, list | dict) or (not record.typed and isinstance(record.value(key), list))
    return message_turns(record, key) if listed else text_turns(record.text(key))


def conversation_id(turns: Sequence[Turn], kind: PromptKind) -> str:
    """A stable id: the first 16 hexadecimal digits of the SHA-256 of the content."""
    text = json.dumps([kind, *((turn.role, turn.text) for turn in turns)], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def waits_for_answer(turns: Sequence[Turn]) -> bool:
    """Whether the turns end with a human turn and none of them is empty."""
    return bool(turns) and turns[-1].role == "human" and all(turn.text for turn in turns)


def check_waits(turns: Sequence[Turn]) -> None:
    """Raises SkipRecord, with the reason, unless the turns wait for an answer (see `waits_for_answer`)."""
    if not any(turn.text for turn in turns):
        raise SkipRecord(EMPTY)
    if not any(turn.role == "human" for turn in turns):
        raise SkipRecord(NO_HUMAN)
    if turns[-1].role != "human":
        raise SkipRecord(ANSWERED)
    if not waits_for_answer(turns):
        raise SkipRecord(EMPTY_TURN)


def up_to_human(turns: Sequence[Turn]) -> list[Turn]:
    """The turns cut back to the last human one."""
    end = len(turns)
    while end and turns[end - 1].role != "human":
        end -= 1
    return list(turns[:end])


def _transposed(value: dict[str, Any]) -> list[dict[str, Any]]:
    """An object of equally long lists, as which some tables hold a list of messages, as that list; else empty."""
    columns = [v for v in value.values() if isinstance(v, list)]
    if not columns or len(columns) < len(value) or len({len(v) for v in columns}) > 1:
        return []
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _message(record: Record, place: str, message: object) -> Turn:
    if isinstance(message, dict):
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if isinstance(role, str) and (role.lower() in _TOOLS or (content is None and _calls(message))):
            raise SkipRecord("turns of tools")
        known = _ROLES.get(role) or _OTHER_ROLES.get(role) if isinstance(role, str) else None
        if known and isinstance(content, list):
            content = _parts(content)
        if known and isinstance(content, str):
            return Turn(known, safe_text(content))
    raise DataError(f"{record.place}: {place} must be {{role, content}} with a role of {', '.join(_ROLES)} and a text")


def _calls(message: dict[str, Any]) -> bool:
    return bool(message.get("tool_calls") or message.get("function_call"))


def _parts(content: list[Any]) -> str | None:
    """The text of a list of {"type": "text", "text": …}; None where it is no such list."""
    if not content or not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content):
        return None
    if any(part["type"] not in ("text", "input_text", "output_text") for part in content):
        raise SkipRecord("a turn holds more than text")
    texts = [part.get("text") for part in content]
    return "\n".join(texts) if all(isinstance(text, str) for text in texts) else None
