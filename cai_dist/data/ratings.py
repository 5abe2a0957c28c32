"""People's ratings of how harmful an answer is, from data sets (2212.08073, section 4.5)."""

from __future__ import annotations

from dataclasses import dataclass

from cai_dist.config.data import RatingSource
from cai_dist.constitution.draws import draw
from cai_dist.data.dialogues import SkipRecord, conversation_id
from cai_dist.data.layouts import LayoutReader
from cai_dist.data.reading import ReadCounts, ReadReport, WithReport
from cai_dist.data.records import Record
from cai_dist.data.sources import read_records, shown
from cai_dist.errors import DataError
from cai_dist.types import Prompt, RatedAnswer

LEAST, MOST = 0.0, 4.0
_RANGE = 1 << 62
_SETTING = "data.harm_ratings"


@dataclass(frozen=True, slots=True)
class RatingSet(WithReport):
    """The rated answers of one data set, and what was left out on the way."""

    ratings: tuple[RatedAnswer, ...]
    report: ReadReport
    """A duplicate is the same answer to the same prompt with the same rating."""


def load_rating_set(source: RatingSource, seed: int) -> RatingSet:
    """Read `source.source`: records of `prompt` (as for prompts), `response` and `rating` from 0 to 4, or of
    `transcript` or `messages` (a conversation, whose last answer was rated) and `rating`, as in hh-rlhf's red-team
    attempts. In drawn order; the first `source.limit` of them.

    Raises DataError, naming file and line, for malformed records and ratings outside 0..4, and where there are too few.
    """
    layouts, reading = LayoutReader(_SETTING), ReadCounts(shown(source.source))
    found: dict[tuple[str, str, float], RatedAnswer] = {}
    for record in read_records(source.source):
        reading.records += 1
        rating = _rating(record)
        try:
            rated = layouts.rated(record)
            if rating is None:
                raise SkipRecord("the rating is null")
        except SkipRecord as reason:
            reading.skip(str(reason), record.place)
            continue
        prompt = Prompt(conversation_id(rated.turns, "red_team"), tuple(rated.turns), "red_team")
        key = (prompt.id, rated.response, rating)
        reading.duplicates += key in found
        found.setdefault(key, RatedAnswer(prompt, rated.response, rating))
    report = reading.report()
    if len(found) < (source.limit or 2):
        raise DataError(
            f"{report.source}: {len(found)} usable ratings, {source.limit or 'at least 2'} wanted; lower "
            f"{_SETTING}.limit or give records with prompt, response and rating"
            + (f"; of {report.records} records {report.why()}" if report.left_out else "")
        )
    order = sorted(found, key=lambda key: (draw(seed, "rating order", key[0], key[1], str(key[2]), n=_RANGE), key))
    kept = tuple(found[key] for key in order[: source.limit])
    return RatingSet(kept, report)


def _rating(record: Record) -> float | None:
    rating = record.value("rating")
    if rating is None and "rating" in record.data:
        return None
    if isinstance(rating, (int, float)) and not isinstance(rating, bool) and LEAST <= rating <= MOST:
        return float(rating)
    raise DataError(f"{record.place}: 'rating' must be a number from 0 (harmless) to 4, found {str(rating)[:40]!r}")
