"""People's ratings of how harmful an answer is, from files (2212.08073, section 4.5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cai_dist.config.data import RatingSource
from cai_dist.constitution.draws import draw
from cai_dist.data.dialogues import conversation_id, dialogue, prompt_turns, safe_text, waits_for_answer
from cai_dist.data.records import Record, read_records
from cai_dist.errors import DataError
from cai_dist.types import Prompt, RatedAnswer, Turn

LEAST, MOST = 0.0, 4.0
_RANGE = 1 << 62


@dataclass(frozen=True, slots=True)
class RatingSet:
    """The rated answers of one file, and what was left out on the way."""

    ratings: tuple[RatedAnswer, ...]
    records: int
    duplicates: int
    """The same answer to the same prompt with the same rating."""
    skipped: int
    """Records without a prompt that waits for an answer, an answer or a rating (null)."""


def load_rating_set(source: RatingSource, seed: int) -> RatingSet:
    """Read `source.source`: records of `prompt` (as for prompts), `response` and `rating` from 0 to 4, or of
    `transcript` (a dialogue, whose last answer was rated) and `rating`, as in hh-rlhf's red-team attempts. In drawn
    order; the first `source.limit` of them.

    Raises DataError, naming file and line, for malformed records and ratings outside 0..4, and where there are too few.
    """
    path = Path(source.source).expanduser()
    found: dict[tuple[str, str, float], RatedAnswer] = {}
    records = skipped = 0
    for record in read_records(path):
        records += 1
        rating = _rating(record)
        turns, response = _dialogue(record)
        if rating is None or not waits_for_answer(turns) or not response:
            skipped += 1
            continue
        prompt = Prompt(conversation_id(turns, "red_team"), tuple(turns), "red_team")
        found.setdefault((prompt.id, response, rating), RatedAnswer(prompt, response, rating))
    if len(found) < (source.limit or 2):
        raise DataError(
            f"{path}: {len(found)} usable ratings, {source.limit or 'at least 2'} wanted; lower "
            "data.harm_ratings.limit or give records with prompt, response and rating"
        )
    order = sorted(found, key=lambda key: (draw(seed, "rating order", key[0], key[1], str(key[2]), n=_RANGE), key))
    kept = tuple(found[key] for key in order[: source.limit])
    return RatingSet(kept, records, records - skipped - len(found), skipped)


def _rating(record: Record) -> float | None:
    rating = record.data.get("rating")
    if rating is None and "rating" in record.data:
        return None
    if isinstance(rating, (int, float)) and not isinstance(rating, bool) and LEAST <= rating <= MOST:
        return float(rating)
    raise DataError(f"{record.place}: 'rating' must be a number from 0 (harmless) to 4, found {str(rating)[:40]!r}")


def _dialogue(record: Record) -> tuple[list[Turn], str]:
    """(prompt, answer); an empty answer where the record has none."""
    if "transcript" not in record.data:
        return prompt_turns(record), safe_text(record.text("response"))
    turns = dialogue(record.text("transcript"))
    while turns and turns[-1].role != "assistant":
        turns.pop()
    return (turns[:-1], turns[-1].text) if turns else ([], "")
