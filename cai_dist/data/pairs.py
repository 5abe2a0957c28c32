"""Two answers to one prompt, from texts or dialogues that repeat the prompt or do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cai_dist.data.dialogues import SkipRecord, dialogue, message_turns, safe_text, up_to_human
from cai_dist.data.records import Record
from cai_dist.types import Turn

MISMATCH = "an answer is a dialogue that does not begin with the prompt"
NOTHING_SHARED = "chosen and rejected share no human turn"


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with its better and its worse answer; an empty text where there is no answer."""

    turns: list[Turn]
    chosen: str
    rejected: str


def from_dialogues(record: Record, chosen: str, rejected: str) -> Pair:
    """The pair of two whole dialogues (hh-rlhf, TRL's implicit prompt): the prompt is what they have in common, cut
    back to its last human turn, and the answers are the next turns.

    Raises DataError where a column holds no dialogue by its type, SkipRecord where nothing is shared.
    """
    both = [_dialogue(record, key) for key in (chosen, rejected)]
    pair = _parted(*both)
    if pair is None:
        raise SkipRecord(NOTHING_SHARED)
    return pair


def given_pair(record: Record, turns: Sequence[Turn], chosen: str, rejected: str) -> Pair:
    """The pair of a record that names its prompt, `turns`. An answer is a text, a list of messages, or a whole dialogue
    that repeats the prompt, which is taken off.

    Raises DataError for anything else, SkipRecord where a dialogue does not begin with the prompt.
    """
    both = [_dialogue(record, key) for key in (chosen, rejected)]
    if all(_repeats_prompt(said) for said in both):
        pair = _parted(*both)
        if pair is None or not _same_prompt(turns, pair.turns):
            raise SkipRecord(MISMATCH)
        if turns and turns[0].role == "system" and pair.turns[0].role != "system":
            return Pair([turns[0], *pair.turns], pair.chosen, pair.rejected)
        return pair
    return Pair(list(turns), answer_to(record, chosen, turns), answer_to(record, rejected, turns))


def answer_to(record: Record, key: str, turns: Sequence[Turn]) -> str:
    """The answer under `key` to the prompt `turns`: a text, or the turn after the prompt of a dialogue.

    Raises DataError, SkipRecord as `given_pair`.
    """
    said = _dialogue(record, key)
    if not said:
        value = record.data.get(key)
        return safe_text(record.text(key)) if not isinstance(value, list) else ""
    if _repeats_prompt(said):
        known, said = _without_system(turns), _without_system(said)
        if said[: len(known)] != known:
            raise SkipRecord(MISMATCH)
        said = said[len(known) :]
    return _first_answer(said)


def _dialogue(record: Record, key: str) -> list[Turn]:
    """The turns under `key`; none where it is a plain text."""
    value = record.data.get(key)
    if isinstance(value, list | dict) or (not record.typed and isinstance(record.value(key), list)):
        return message_turns(record, key)
    return dialogue(record.text(key))


def _repeats_prompt(said: Sequence[Turn]) -> bool:
    return bool(said) and said[0].role != "assistant"


def _parted(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> Pair | None:
    """The pair of two dialogues where they part; None where they share no human turn."""
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    shared = up_to_human(chosen[:same])
    if not shared:
        return None
    return Pair(shared, _first_answer(chosen[len(shared) :]), _first_answer(rejected[len(shared) :]))


def _same_prompt(named: Sequence[Turn], shared: Sequence[Turn]) -> bool:
    """Whether what two dialogues share is the prompt that the record names, or goes on from it or leads up to it (sets
    name the first or the last human turn alone)."""
    known, found = _without_system(named), _without_system(shared)
    return bool(known) and (found[: len(known)] == known or found[-len(known) :] == known)


def _without_system(turns: Sequence[Turn]) -> list[Turn]:
    return [turn for turn in turns if turn.role != "system"]


def _first_answer(rest: Sequence[Turn]) -> str:
    return rest[0].text if rest and rest[0].role == "assistant" else ""
