"""The columns of a record: renamed, joined and left aside as the run says, and none dropped in silence.

A column that holds words and that the layout does not use may be the text to work on (the `input` of an instruction):
it is refused, unless its name says that it is no such text (`id`, `source`, `score_a`) or the run says so.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from cai_dist.config.data import DataSource
from cai_dist.data.records import Record
from cai_dist.errors import DataError


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ABOUT = _names(
    # Which record it is, and where it comes from.
    "id ids qid pid idx index index_level unnamed uuid guid key hash sha256 md5 row source src origin dataset subset "
    "config split file filename path url link license repo date time timestamp created created_at created_at_utc "
    "updated updated_at year version metadata meta info extra name motivation_app "
    # What kind of record it is.
    "category categories subcategory domain topic topics tag tags label labels type kind class group genre task tasks "
    "skill skills level difficulty complexity language lang locale country status state redacted "
    # Who made it, and what was thought of it.
    "model models generator engine provider annotator annotators annotation annotations worker workers author authors "
    "profile user username score scores rating ratings rank ranks reward rewards quality preference likert votes "
    "upvotes downvotes upvote_ratio confidence margin safe unsafe toxic toxicity moderation harm_category severity "
    "severity_level "
    # How long it is, and how it was sampled.
    "num_params num_turns num_tokens tokens turn turns length len count weight weights seed temperature finish_reason"
)
_OWNERS = _names(
    "prompt response instruction question answer message conversation chosen rejected completion post comment thread "
    "model task user author c root original raw is has red team member openai"
)
_MAY_HOLD_TEXT = _names("task tasks info extra name topic topics profile category annotation annotations type kind")
"""Names of these that some sets give to a text to work on: its length tells."""
_SHORT = 120
"""Characters, in one line, that are a note about a record."""
_SIDES = frozenset({"a", "b", "chosen", "rejected", "human", "gpt"})
_NO_WORDS = frozenset({"", "true", "false", "none", "null", "nan", "n/a"})


def harmless(column: str) -> bool:
    """Whether a column's name says that it holds something about a record and no text of it: `id`, `score_chosen`,
    `response_0_source`, `is_safe`. Digits, whose it is (`response_`) and which side's (`_A`) count for nothing."""
    words = [word for word in re.split(r"[-_.:\s]+", column.lower()) if word and not word.isdigit()]
    while len(words) > 1 and words[-1] in _SIDES:
        words.pop()
    while len(words) > 1 and "_".join(words) not in _ABOUT and words[0] in _OWNERS:
        words.pop(0)
    return "_".join(words) in _ABOUT


def named(record: Record, source: DataSource | None) -> Record:
    """The record as the run's `columns` and `ignore` name it. Raises DataError for a column that is not there."""
    if source is None or not (source.columns or source.ignore):
        return record
    data = {key: value for key, value in record.data.items() if key not in source.ignore}
    given = dict(data)
    for wanted in source.columns.values():
        for column in (wanted,) if isinstance(wanted, str) else wanted:
            if column not in given:
                known = ", ".join(map(str, list(record.data)[:12]))
                raise DataError(f"{record.place}: no column {column!r}, which columns names; the record has: {known}")
            data.pop(column, None)
    for target, wanted in source.columns.items():
        if target in data:
            raise DataError(f"{record.place}: columns names {target!r}, which is a column, too; put that under ignore")
        data[target] = given[wanted] if isinstance(wanted, str) else _joined(record, given, wanted)
    return Record(record.place, data, record.typed)


def _joined(record: Record, given: Mapping[str, Any], names: Iterable[str]) -> str:
    texts = []
    for name in names:
        value = given[name]
        if value is not None and not isinstance(value, str):
            raise DataError(f"{record.place}: column {name!r} must hold a text to be joined")
        texts.append((value or "").strip())
    return "\n\n".join(text for text in texts if text)


class ColumnCheck:
    """Refuses the first record with words in a column that its layout does not know."""

    def __init__(self, setting: str) -> None:
        """`setting`: the key of the run that the data set stands under, such as `data.red_team`."""
        self._setting = setting
        self._unknown: dict[tuple[frozenset[str], frozenset[str]], tuple[str, ...]] = {}

    def check(self, record: Record, layout: str, known: frozenset[str], text: str) -> None:
        """Raises DataError. `text` is the layout's column that such words might belong to."""
        key = (frozenset(record.data), known)
        if (columns := self._unknown.get(key)) is None:
            columns = self._unknown[key] = tuple(sorted(unknown(record.data, known)))
        passages = [c for c in record.data if c not in known and c.lower() in _MAY_HOLD_TEXT and _long(record.data[c])]
        for column in (*columns, *passages):
            if holds_words(record.data[column]):
                join = f", or columns: {{{text}: [{text}, {_plain(column)}]}} to join it"
                raise DataError(
                    f"{record.place}: column {column[:80]!r} holds words, and the layout {layout} does not use it; in "
                    f"{self._setting}.source give ignore: [{_plain(column)}] to leave it out"
                    f"{join if isinstance(record.data[column], str) else ''}"
                )


def _long(value: object) -> bool:
    return isinstance(value, str) and (len(value.strip()) > _SHORT or "\n" in value.strip())


def _plain(column: str) -> str:
    return column[:40] if re.fullmatch(r"[\w-]+", column) else repr(column[:40])


def unknown(columns: Collection[str], known: Collection[str]) -> list[str]:
    """The columns that neither the layout knows nor whose names say that they hold no text of the record."""
    return [c for c in columns if c not in known and not harmless(c)]


def holds_words(value: object) -> bool:
    """Whether there are words anywhere in a value: a text with a letter in it, or bytes."""
    if isinstance(value, str):
        return value.strip().lower() not in _NO_WORDS and any(map(str.isalpha, value))
    if isinstance(value, bytes):
        return bool(value)
    if isinstance(value, Mapping):
        return any(map(holds_words, value.values()))
    return isinstance(value, list | tuple) and any(map(holds_words, value))
