"""Multiple-choice questions from files, in the layout of BIG-bench and the HHH evaluation (2112.00861): `input` and
`target_scores`, the score of each option."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from cai_dist.constitution.parse import split_dialogue
from cai_dist.data.dialogues import MARKERS, safe_text, waits_for_answer
from cai_dist.data.records import Record, read_records
from cai_dist.errors import DataError
from cai_dist.types import ChoiceQuestion, Turn

LARGEST = sys.float_info.max
"""Of a score; JSON has whole numbers beyond it."""


@dataclass(frozen=True, slots=True)
class ChoiceSet:
    """The questions of one file, and what was left out on the way."""

    questions: tuple[ChoiceQuestion, ...]
    records: int
    skipped: int
    """Records without a question, or without two different options of which one is better."""


def load_choice_set(source: str) -> ChoiceSet:
    """Read a file of records with `input` (a text, or one with Human/Assistant labels), `target_scores` (option ->
    number) and perhaps `id`; questions stay in the file's order.

    A question's id is its own where it has one, else `line-N` (N counts records). Raises DataError, naming file and
    line, for malformed records, and where no question is left.
    """
    path = Path(source).expanduser()
    found: dict[str, ChoiceQuestion] = {}
    records = skipped = 0
    for record in read_records(path):
        records += 1
        question = _question(record, records)
        if question is None:
            skipped += 1
            continue
        if question.id in found:
            raise DataError(f"{record.place}: the id {question.id!r} has been there before; ids must differ")
        found[question.id] = question
    if not found:
        raise DataError(f"{path}: no question in {records} records; give input and target_scores with a best option")
    return ChoiceSet(tuple(found.values()), records, skipped)


def _question(record: Record, number: int) -> ChoiceQuestion | None:
    text = safe_text(record.text("input"))
    turns = tuple(_turns(text))
    scores = _scores(record)
    given = record.data.get("id", f"line-{number}")
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        raise DataError(f"{record.place}: 'id' must be a text or a whole number")
    if not waits_for_answer(turns) or len(scores) < 2 or len(set(scores.values())) < 2:
        return None
    return ChoiceQuestion(safe_text(str(given)), turns, tuple(scores), tuple(scores.values()))


def _turns(text: str) -> list[Turn]:
    turns = split_dialogue(text, MARKERS)
    if turns and turns[-1].role == "assistant" and not turns[-1].text:
        turns.pop()  # "… \n\nAssistant:" opens the answer
    return turns or [Turn("human", text)]


def _scores(record: Record) -> dict[str, float]:
    scores = record.data.get("target_scores")
    if not isinstance(scores, dict):
        raise DataError(f"{record.place}: 'target_scores' must be an object of options and their scores")
    found: dict[str, float] = {}
    for option, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not abs(score) <= LARGEST:
            raise DataError(f"{record.place}: the score of option {option[:40]!r} must be a number")
        if text := safe_text(option):
            found[text] = float(score)
    return found
