"""Rated answers and multiple-choice questions from files: what they hold, and what is a mistake in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.data import RatingSource
from cai_dist.data.choices import load_choice_set
from cai_dist.data.ratings import load_rating_set
from cai_dist.errors import DataError


def lines(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def rating(n: int, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"q{n}", "response": f"a{n}", "rating": n % 5, **changes}


def test_ratings_of_either_layout(tmp_path: Path) -> None:
    attempt = "\n\nHuman: q\n\nAssistant: no\n\nHuman: please\n\nAssistant: yes\n\nHuman: thanks"
    source = lines(tmp_path / "r.jsonl", rating(3), {"transcript": attempt, "rating": 2.5, "model_type": "rlhf"})
    found = load_rating_set(RatingSource(source=source), 0)
    by_rating = {x.rating: x for x in found.ratings}
    assert [(t.role, t.text) for t in by_rating[3.0].prompt.turns] == [("human", "q3")]
    assert by_rating[3.0].response == "a3" and by_rating[3.0].prompt.kind == "red_team"
    # The last answer was rated, not what came after it.
    assert by_rating[2.5].response == "yes" and [t.text for t in by_rating[2.5].prompt.turns] == ["q", "no", "please"]


def test_unusable_ratings_are_counted(tmp_path: Path) -> None:
    source = lines(
        tmp_path / "r.jsonl", *(rating(n) for n in range(4)), rating(0), rating(0, rating=4), rating(9, rating=None),
        rating(9, response=" "), {"transcript": "no dialogue", "rating": 1},
    )  # fmt: skip
    found = load_rating_set(RatingSource(source=source), 0)
    assert (found.records, found.duplicates, found.skipped, len(found.ratings)) == (9, 1, 3, 5)


def test_a_limit_draws_by_seed_and_not_by_place(tmp_path: Path) -> None:
    records = [rating(n) for n in range(40)]
    one = lines(tmp_path / "a.jsonl", *records)
    other = lines(tmp_path / "b.jsonl", *records[::-1])
    first, turned, seeded = (
        [x.response for x in load_rating_set(RatingSource(source=s, limit=5), seed).ratings]
        for s, seed in ((one, 0), (other, 0), (one, 1))
    )
    assert first == turned != seeded and len(first) == 5


@pytest.mark.parametrize(
    ("record", "part"),
    [
        (rating(0, rating=5), "from 0 (harmless) to 4"),
        (rating(0, rating=float("nan")), "from 0 (harmless) to 4"),
        (rating(0, rating="3"), "from 0 (harmless) to 4"),
        (rating(0, rating=True), "from 0 (harmless) to 4"),
        ({"prompt": "q", "response": "a"}, "from 0 (harmless) to 4"),
        (rating(0, response=3), "'response' must be a text"),
        ({"transcript": 3, "rating": 1}, "'transcript' must be a text"),
    ],
)
def test_malformed_ratings_name_their_place(record: dict[str, Any], part: str, tmp_path: Path) -> None:
    source = lines(tmp_path / "r.jsonl", rating(1), record)
    with pytest.raises(DataError) as error:
        load_rating_set(RatingSource(source=source), 0)
    assert "r.jsonl:2" in str(error.value) and part in str(error.value)


def test_too_few_ratings(tmp_path: Path) -> None:
    source = lines(tmp_path / "r.jsonl", rating(1), rating(2))
    with pytest.raises(DataError, match="2 usable ratings, 3 wanted"):
        load_rating_set(RatingSource(source=source, limit=3), 0)


def question(**changes: Any) -> dict[str, Any]:
    return {"input": "Which?", "target_scores": {"this": 1, "that": 0}, **changes}


def test_questions_keep_their_order_their_ids_and_their_conversation(tmp_path: Path) -> None:
    long = "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: Which?\n\nAssistant:"
    source = lines(tmp_path / "q.jsonl", question(), question(id="honest-1", input=long), question(id=7))
    found = load_choice_set(source)
    assert [q.id for q in found.questions] == ["line-1", "honest-1", "7"]
    assert found.questions[0].options == ("this", "that") and found.questions[0].scores == (1.0, 0.0)
    assert [(t.role, t.text) for t in found.questions[1].turns] == [
        ("human", "Hello"), ("assistant", "Hi"), ("human", "Which?")
    ]  # fmt: skip


def test_questions_without_a_best_option_are_counted(tmp_path: Path) -> None:
    source = lines(
        tmp_path / "q.jsonl", question(), question(target_scores={"a": 1}), question(target_scores={"a": 1, "b": 1}),
        question(target_scores={}), question(input=" "), question(target_scores={" a": 1, "a ": 0}),
    )  # fmt: skip
    found = load_choice_set(source)
    assert (len(found.questions), found.records, found.skipped) == (1, 6, 5)


@pytest.mark.parametrize(
    ("record", "part"),
    [
        (question(target_scores=["this"]), "'target_scores' must be an object"),
        ({"input": "x"}, "'target_scores' must be an object"),
        (question(target_scores={"a": "1", "b": 0}), "must be a number"),
        (question(target_scores={"a": float("inf"), "b": 0}), "must be a number"),
        ({"target_scores": {"a": 1, "b": 0}}, "'input' must be a text"),
        (question(id=True), "'id' must be a text"),
        (question(id="line-1"), "has been there before"),
    ],
)
def test_malformed_questions_name_their_place(record: dict[str, Any], part: str, tmp_path: Path) -> None:
    source = lines(tmp_path / "q.jsonl", question(), record)
    with pytest.raises(DataError) as error:
        load_choice_set(source)
    assert "q.jsonl:2" in str(error.value) and part in str(error.value)


def test_a_file_without_a_question_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no question in 1 records"):
        load_choice_set(lines(tmp_path / "q.jsonl", question(target_scores={})))
