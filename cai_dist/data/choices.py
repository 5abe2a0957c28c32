"""Multiple-choice questions from files, in the layout of BIG-bench and the HHH evaluation (2112.00861): `input` and
`target_scores`, the score of each option."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from cai_dist.data.columns import ColumnCheck
from cai_dist.data.dialogues import SkipRecord, check_waits, safe_text, text_turns
from cai_dist.data.reading import ReadCounts, ReadReport, WithReport
from cai_dist.data.records import Record
from cai_dist.data.sources import read_records, shown
from cai_dist.errors import DataError
from cai_dist.types import ChoiceQuestion

LARGEST = sys.float_info.max
"""Of a score; JSON has whole numbers beyond it."""


_COLUMNS = frozenset({"input", "target_scores", "id"})


@dataclass(frozen=True, slots=True)
class ChoiceSet(WithReport):
    """The questions of one file, and what was left out on the way."""

    questions: tuple[ChoiceQuestion, ...]
    report: ReadReport


def load_choice_set(source: str, setting: str = "evaluate.multiple_choice") -> ChoiceSet:
    """Read a file of records with `input` (a text, or one with Human/Assistant labels), `target_scores` (option ->
    number) and perhaps `id`; questions stay in the file's order. `setting` is the key that names it.

    A question's id is its own where it has one, else `line-N` (N counts records). Raises DataError, naming file and
    line, for malformed records, words in other columns, and where no question is left.
    """
    columns, reading = ColumnCheck(setting), ReadCounts(shown(source))
    found: dict[str, ChoiceQuestion] = {}
    for record in read_records(source):
        reading.records += 1
        columns.check(record, "multiple choice", _COLUMNS, "input")
        try:
            question = _question(record, reading.records)
        except SkipRecord as reason:
            reading.skip(str(reason), record.place)
            continue
        if question.id in found:
            raise DataError(f"{record.place}: the id {question.id!r} has been there before; ids must differ")
        found[question.id] = question
    report = reading.report()
    if not found:
        raise DataError(
            f"{report.source}: no question in {report.records} records; give input and target_scores with a best option"
            + (f"; {report.why()}" if report.left_out else "")
        )
    return ChoiceSet(tuple(found.values()), report)


def _question(record: Record, number: int) -> ChoiceQuestion:
    turns = tuple(text_turns(record.text("input")))
    scores = _scores(record)
    given = record.data.get("id", f"line-{number}")
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        raise DataError(f"{record.place}: 'id' must be a text or a whole number")
    check_waits(turns)
    if len(set(scores.values())) < 2:
        raise SkipRecord("no two options of different scores")
    return ChoiceQuestion(safe_text(str(given)), turns, tuple(scores), tuple(scores.values()))


def _scores(record: Record) -> dict[str, float]:
    scores = record.value("target_scores")
    if not isinstance(scores, dict):
        raise DataError(f"{record.place}: 'target_scores' must be an object of options and their scores")
    found: dict[str, float] = {}
    for option, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not abs(score) <= LARGEST:
            raise DataError(f"{record.place}: the score of option {option[:40]!r} must be a number")
        if text := safe_text(option):
            found[text] = float(score)
    return found
