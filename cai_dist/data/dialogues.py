"""Dialogues in the layouts that data sets use, as turns. The words come from anywhere and are made safe to handle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from cai_dist.constitution.parse import split_dialogue
from cai_dist.data.records import Record
from cai_dist.errors import DataError
from cai_dist.types import PromptKind, Role, Turn

MARKERS: dict[str, Role] = {"Human": "human", "Assistant": "assistant"}
_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "human",
    "human": "human",
    "assistant": "assistant",
    "gpt": "assistant",
}


def safe_text(text: str) -> str:
    """`text` without NULs and lone surrogates (which no UTF-8 file takes), with plain line ends, stripped."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole.replace("\x00", "").replace("\r\n", "\n").replace("\r", "\n").strip()


def dialogue(text: str) -> list[Turn]:
    """Turns of "\\n\\nHuman: … \\n\\nAssistant: …"; empty where the text does not start with such a label."""
    return split_dialogue(safe_text(text), MARKERS)


def pair_dialogues(record: Record) -> tuple[list[Turn], list[Turn], list[Turn]]:
    """(common turns, rest of `chosen`, rest of `rejected`) of a record in the hh-rlhf layout.

    The common part is cut back to its last human turn, so that each rest begins with an assistant's turn. Raises
    DataError where the keys are missing; a text that is no dialogue gives three empty lists.
    """
    chosen, rejected = (dialogue(record.text(key)) for key in ("chosen", "rejected"))
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    while same and chosen[same - 1].role != "human":
        same -= 1
    return (chosen[:same], chosen[same:], rejected[same:]) if same else ([], [], [])


def prompt_turns(record: Record) -> list[Turn]:
    """The turns under `prompt`: a text, a text with Human/Assistant labels, or a list of {"role", "content"}.

    Raises DataError for anything else.
    """
    prompt = record.data.get("prompt")
    if isinstance(prompt, list):
        return [_message(record, i, message) for i, message in enumerate(prompt)]
    text = safe_text(record.text("prompt"))
    turns = split_dialogue(text, MARKERS)
    if turns and turns[-1].role == "assistant" and not turns[-1].text:
        turns.pop()  # "… \n\nAssistant:" opens the answer
    return turns or [Turn("human", text)]


def conversation_id(turns: Sequence[Turn], kind: PromptKind) -> str:
    """A stable id: the first 16 hexadecimal digits of the SHA-256 of the content."""
    text = json.dumps([kind, *((turn.role, turn.text) for turn in turns)], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def waits_for_answer(turns: Sequence[Turn]) -> bool:
    """Whether the turns end with a human turn and none of them is empty."""
    return bool(turns) and turns[-1].role == "human" and all(turn.text for turn in turns)


def _message(record: Record, i: int, message: object) -> Turn:
    if isinstance(message, dict):
        role, content = message.get("role"), message.get("content")
        if isinstance(role, str) and role in _ROLES and isinstance(content, str):
            return Turn(_ROLES[role], safe_text(content))
    raise DataError(
        f"{record.place}: prompt[{i}] must be {{role, content}} with a role of {', '.join(_ROLES)} and a text"
    )
