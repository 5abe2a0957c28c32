"""The layouts of records that are read, each known by its columns together (docs/data.md lists them).

A layout is the first of `LAYOUTS` all of whose `needs` a record has. What it neither uses nor knows must not hold words
(`columns.py`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from cai_dist.data.columns import ColumnCheck
from cai_dist.data.dialogues import SkipRecord, check_waits, message_turns, safe_text, turns_of, up_to_human
from cai_dist.data.pairs import Pair, answer_to, from_dialogues, given_pair
from cai_dist.data.records import Record
from cai_dist.errors import DataError
from cai_dist.types import Turn


@dataclass(frozen=True, slots=True)
class AskedPrompt:
    """The prompt of a record."""

    turns: list[Turn]
    conversation: bool = False
    """Whether the record is a conversation, every human turn of which is a prompt, and does not name its prompt."""


@dataclass(frozen=True, slots=True)
class Rated:
    """A rated answer of a record."""

    turns: list[Turn]
    response: str


@dataclass(frozen=True, slots=True)
class RecordLayout:
    """One way in which people lay out a record."""

    name: str
    needs: tuple[str, ...]
    knows: tuple[str, ...]
    """Further columns that it uses, and those whose words are not wanted: answers, and copies of what it uses."""
    prompt: Callable[[Record], AskedPrompt]
    pair: Callable[[Record], Pair] | None = None
    rated: Callable[[Record], Rated] | None = None

    @property
    def columns(self) -> frozenset[str]:
        """All columns that may hold words."""
        return frozenset((*self.needs, *self.knows, *SYSTEM))


SYSTEM = ("system", "system_prompt")
ANSWERS = ("response", "responses", "output", "completion", "answer", "chosen", "rejected")


def system_first(record: Record, turns: Sequence[Turn]) -> list[Turn]:
    """`turns` after the system turn that a column `system` or `system_prompt` holds, where it holds one.

    Raises SkipRecord where the turns have another system turn.
    """
    texts = [safe_text(record.text(key)) for key in SYSTEM if record.data.get(key) is not None]
    said = [Turn("system", text) for text in dict.fromkeys(texts) if text]
    if not said or list(turns[:1]) == said:
        return list(turns)
    if len(said) > 1 or any(turn.role == "system" for turn in turns):
        raise SkipRecord("two different system turns")
    return [*said, *turns]


def _prompt(record: Record, key: str = "prompt") -> AskedPrompt:
    return AskedPrompt(system_first(record, turns_of(record, key)))


def _conversation(record: Record, key: str) -> AskedPrompt:
    """A conversation under `key`, up to its last human turn."""
    turns = turns_of(record, key) if key == "transcript" else message_turns(record, key)
    return AskedPrompt(system_first(record, up_to_human(turns) or turns), conversation=True)


def _messages(record: Record, key: str) -> AskedPrompt:
    """A list of messages; a text `prompt` beside it must be one of its turns (HuggingFaceH4/no_robots, ultrachat)."""
    asked = _conversation(record, key)
    beside = record.data.get("prompt")
    if isinstance(beside, str) and not any(safe_text(beside) in turn.text for turn in message_turns(record, key)):
        raise DataError(
            f"{record.place}: 'prompt' is not said in {key!r}; name the one that is not wanted under ignore"
        )
    return asked


def _instruction(record: Record) -> AskedPrompt:
    """An instruction with what it is about: Alpaca's `input`, Dolly's `context`, the first input of self-instruct's
    `instances`; an empty line between them. `history` (pairs of earlier questions and answers) goes before it."""
    texts = [safe_text(record.text("instruction"))]
    for key in ("input", "context"):
        if record.data.get(key) is not None:
            texts.append(safe_text(record.text(key)))
    instances = record.value("instances") or []
    first = instances[0] if isinstance(instances, list) and instances else {}
    if not isinstance(first, dict) or not isinstance(first.get("input", ""), str):
        raise DataError(f"{record.place}: 'instances' must be a list of objects with an input text")
    texts.append(safe_text(first.get("input", "")))
    # Without the instruction there is nothing to do, whatever it would be about.
    text = "\n\n".join(text for text in texts if text) if texts[0] else ""
    return AskedPrompt(system_first(record, [*_history(record), Turn("human", text)]))


def _history(record: Record) -> list[Turn]:
    pairs = record.value("history") or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
    ):
        raise DataError(f"{record.place}: 'history' must be a list of [question, answer]")
    return [turn for q, a in pairs for turn in (Turn("human", safe_text(q)), Turn("assistant", safe_text(a)))]


def _beside(
    prompt: Callable[[Record], AskedPrompt], chosen: str = "chosen", rejected: str = "rejected"
) -> Callable[[Record], Pair]:
    """The pair of a layout that names its prompt and two answers."""
    return lambda record: given_pair(record, prompt(record).turns, chosen, rejected)


def _hh(record: Record) -> Pair:
    pair = from_dialogues(record, "chosen", "rejected")
    return Pair(system_first(record, pair.turns), pair.chosen, pair.rejected)


def _numbered(record: Record, prompt: str, names: tuple[str, str], key: str, first_is: int) -> Pair:
    """Two answers, and a number that says which is the better one: `first_is` for the first."""
    better = record.value(key)
    if isinstance(better, bool) or better not in (0, 1):
        raise DataError(f"{record.place}: {key!r} must be 0 or 1, found {str(better)[:40]!r}")
    chosen, rejected = names if better == first_is else names[::-1]
    return given_pair(record, _prompt(record, prompt).turns, chosen, rejected)


def _rated(prompt: Callable[[Record], AskedPrompt], record: Record) -> Rated:
    turns = prompt(record).turns
    return Rated(turns, answer_to(record, "response", turns))


def _last_answer(key: str, record: Record) -> Rated:
    """A conversation whose last answer was rated."""
    turns = turns_of(record, key) if key == "transcript" else message_turns(record, key)
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if not turns:
        raise SkipRecord("no answer")
    return Rated(system_first(record, turns[:-1]), turns[-1].text)


_CRITIQUES = ("critic_prompt", "critic_response", "revision_prompt")
_init = partial(_prompt, key="init_prompt")
_question = partial(_prompt, key="question")


def _revised(record: Record) -> Pair:
    """The pair of cai-conversation: `chosen` and `rejected`, or else the revision over the first answer."""
    if record.data.get("chosen") is not None:
        return from_dialogues(record, "chosen", "rejected")
    return given_pair(record, _init(record).turns, "revision_response", "init_response")


LAYOUTS: tuple[RecordLayout, ...] = (
    RecordLayout(
        "red-team-attempts", ("transcript",), ("task_description", "tags"),
        partial(_conversation, key="transcript"), rated=partial(_last_answer, "transcript"),
    ),
    RecordLayout(
        "PKU-SafeRLHF", ("prompt", "response_0", "response_1"), (), _prompt,
        pair=lambda r: _numbered(r, "prompt", ("response_0", "response_1"), "better_response_id", 0),
    ),
    RecordLayout(
        "SHP", ("history", "human_ref_A", "human_ref_B"), (), partial(_prompt, key="history"),
        pair=lambda r: _numbered(r, "history", ("human_ref_A", "human_ref_B"), "labels", 1),
    ),
    RecordLayout(
        "cai-conversation", ("init_prompt", "init_response", "revision_response"),
        (*_CRITIQUES, "prompt", "messages", "chosen", "rejected"), _init, pair=_revised,
    ),
    *(
        RecordLayout(
            f"{key} with two answers", (key, "chosen", "rejected"), (),
            partial(_messages, key=key), pair=_beside(partial(_messages, key=key)),
        )
        for key in ("conversations", "conversation")
    ),
    RecordLayout(
        "prompt, chosen, rejected", ("prompt", "chosen", "rejected"), ("messages",), _prompt, pair=_beside(_prompt)
    ),
    RecordLayout(
        "question, chosen, rejected", ("question", "chosen", "rejected"), (), _question, pair=_beside(_question),
    ),
    RecordLayout("question, response", ("question", "response"), (), _question),
    RecordLayout(
        "instruction, output", ("instruction", "output"), ("input", "text", "history", *ANSWERS), _instruction,
    ),
    RecordLayout(
        "instruction", ("instruction",), ("input", "context", "instances", "history", *ANSWERS), _instruction,
        pair=_beside(_instruction),
    ),
    RecordLayout(
        "hh-rlhf", ("chosen",), ("rejected",), lambda r: AskedPrompt(_hh(r).turns, conversation=True), pair=_hh
    ),
    *(
        RecordLayout(
            key, (key,), ("prompt",), partial(_messages, key=key), rated=partial(_last_answer, key),
        )
        for key in ("messages", "conversations", "conversation")
    ),
    RecordLayout("prompt", ("prompt",), ANSWERS, _prompt, pair=_beside(_prompt), rated=partial(_rated, _prompt)),
)  # fmt: skip
"""From the particular to the general."""


class LayoutReader:
    """Reads the records of one data set, each by its layout."""

    def __init__(self, setting: str) -> None:
        """`setting`: the key of the run that the data set stands under, such as `data.red_team`."""
        self._setting = setting
        self._check = ColumnCheck(setting)

    def prompt(self, record: Record) -> AskedPrompt:
        """The prompt of a record, which waits for an answer. Raises DataError, or SkipRecord with the reason."""
        asked = self._layout(record, LAYOUTS).prompt(record)
        check_waits(asked.turns)
        return asked

    def pair(self, record: Record) -> Pair:
        """The two answers of a record, of which the first is the better. Raises DataError, or SkipRecord."""
        layout = self._layout(record, [x for x in LAYOUTS if x.pair])
        assert layout.pair is not None
        pair = layout.pair(record)
        check_waits(pair.turns)
        if not pair.chosen or not pair.rejected:
            raise SkipRecord("an answer is missing")
        if pair.chosen == pair.rejected:
            raise SkipRecord("both answers are the same")
        return pair

    def rated(self, record: Record) -> Rated:
        """The rated answer of a record. Raises DataError, or SkipRecord."""
        layout = self._layout(record, [x for x in LAYOUTS if x.rated])
        assert layout.rated is not None
        rated = layout.rated(record)
        check_waits(rated.turns)
        if not rated.response:
            raise SkipRecord("an answer is missing")
        return rated

    def _layout(self, record: Record, layouts: Sequence[RecordLayout]) -> RecordLayout:
        for layout in layouts:
            if all(key in record.data for key in layout.needs):
                self._check.check(record, layout.name, layout.columns, layout.needs[0])
                return layout
        one_of = ", ".join(dict.fromkeys(["prompt", "chosen", "instruction", *(x.needs[0] for x in layouts)]))
        has = ", ".join(str(key)[:40] for key in list(record.data)[:8]) or "no columns"
        near = [
            f"; did you mean {found[0]!r} by {key[:40]!r}?"
            for key in record.data
            if (found := difflib.get_close_matches(key, {x.needs[0] for x in layouts}, 1, 0.8))
        ]
        raise DataError(
            f"{record.place}: no layout that is known (docs/data.md) has these columns: {has}; name yours under "
            f"{self._setting}.source, as columns: {{prompt: COLUMN}}; one of these is needed: {one_of}"
            + "".join(near[:1])
        )
