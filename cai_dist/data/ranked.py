"""Ranked answers of people from files in the layout of stack-exchange-preferences, and pairs for pretraining a
preference model on them (Askell et al. 2021, 2112.00861)."""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from cai_dist.config.data import RankedSource
from cai_dist.config.preference import PmPretrainingConfig
from cai_dist.constitution.draws import draw
from cai_dist.data.chat import ChatFormat
from cai_dist.data.columns import ColumnCheck
from cai_dist.data.dialogues import SkipRecord, conversation_id, safe_text
from cai_dist.data.html_text import plain_text
from cai_dist.data.reading import ReadCounts, ReadReport, WithReport
from cai_dist.data.records import Record
from cai_dist.data.sources import read_records, shown
from cai_dist.errors import ConfigError, DataError
from cai_dist.types import LabelledPair, RankedAnswer, RankedQuestion, Turn

LONGEST = 200_000
"""Characters of a question or an answer; a longer one is no text that a person wrote, and is passed over."""
_RANGE = 1 << 62


_COLUMNS = frozenset({"question", "answers"})


@dataclass(frozen=True, slots=True)
class RankedSet(WithReport):
    """The questions of one data set, and what was left out on the way."""

    questions: tuple[RankedQuestion, ...]
    """In drawn order."""
    report: ReadReport


def load_ranked_set(source: RankedSource, seed: int) -> RankedSet:
    """Read `source.source`; the first `source.limit` questions in drawn order.

    A record has `question` (a text, HTML or plain) and `answers`, a list of objects with `text` and either `pm_score`
    (an integer, as the hub's data set has it) or `votes` (an integer) and, where the asker accepted it, `selected`.
    Other keys of an answer (`author`, `answer_id`, …) are not looked at. Answers without words are left out.

    Raises: DataError, naming file and line, for malformed records, words in other columns, and too few questions.
    """
    columns, reading = ColumnCheck("data.ranked_answers"), ReadCounts(shown(source.source))
    found: dict[str, RankedQuestion] = {}
    for record in read_records(source.source):
        reading.records += 1
        columns.check(record, "ranked answers", _COLUMNS, "question")
        try:
            question = _question(record)
        except SkipRecord as reason:
            reading.skip(str(reason), record.place)
            continue
        reading.duplicates += question.id in found
        found.setdefault(question.id, question)
    report = reading.report()
    if len(found) < (source.limit or 1):
        raise DataError(
            f"{report.source}: {len(found)} questions with two answers of different scores, "
            f"{source.limit or 'at least 1'} wanted; lower data.ranked_answers.limit or give more"
            + (f"; of {report.records} records {report.why()}" if report.left_out else "")
        )
    order = sorted(found, key=lambda name: (draw(seed, "ranked order", name, n=_RANGE), name))
    kept = tuple(found[name] for name in order[: source.limit])
    return RankedSet(kept, report)


def answer_score(votes: int, accepted: bool) -> int:
    """round(log2(1 + votes)), one more if the asker accepted the answer; -1 if the votes are negative (2112.00861)."""
    return -1 if votes < 0 else round(math.log2(1 + votes)) + accepted


def check_labels(chat: ChatFormat, config: PmPretrainingConfig) -> None:
    """Refuse label words that this model's tokenizer cannot say or cannot tell apart: to a word-level tokenizer an
    unknown label is the same unknown word as the other. Raises ConfigError."""
    tokenizer = chat.tokenizer
    ids = {}
    for key, label in (("good", config.good), ("bad", config.bad)):
        ids[key] = tuple(tokenizer(label, add_special_tokens=False)["input_ids"])
        back = str(tokenizer.decode(list(ids[key]), skip_special_tokens=True))
        if not ids[key] or "".join(back.split()) != "".join(label.split()):
            raise ConfigError(
                f"preference.pretraining.{key}={label!r}: this model's tokenizer does not know it (it reads back as "
                f"{back!r}); choose words of its vocabulary"
            )
    if ids["good"] == ids["bad"]:
        raise ConfigError(
            f"preference.pretraining.good={config.good!r}, bad={config.bad!r}: the same tokens to this model"
        )


def labelled_pairs(
    questions: Sequence[RankedQuestion], chat: ChatFormat, config: PmPretrainingConfig, context: int, seed: int
) -> tuple[list[LabelledPair], int]:
    """Two pairs for each drawn pair of answers A (scored higher) and B: GOOD:A > BAD:A and BAD:B > GOOD:B
    (2112.00861). Side A of a pair is the better one. So the model must read the answer: the label alone tells nothing.

    Returns: the pairs whose sides have at most `context` tokens, and how many pairs of answers were too long. If one
    answer is too long its partner is left out, too, so that long answers are not always the good ones.
    """
    kept: list[LabelledPair] = []
    too_long = 0
    for question in questions:
        for better, worse in drawn_answers(question, config.pairs_per_question, seed):
            both = [
                _labelled(chat, question, better.text, config.good, config.bad),
                _labelled(chat, question, worse.text, config.bad, config.good),
            ]
            if max(len(ids) for pair in both for ids in (pair.ids_a, pair.ids_b)) > context:
                too_long += 1
            else:
                kept += both
    return kept, too_long


def drawn_answers(question: RankedQuestion, count: int, seed: int) -> list[tuple[RankedAnswer, RankedAnswer]]:
    """Up to `count` different (better, worse) pairs of answers, drawn by (seed, question)."""
    answers = sorted(question.answers, key=lambda a: (-a.score, a.text))
    # Pairs are numbered, not listed (there may be millions): those whose better answer is the i-th end at `ends[i]`.
    worse = [bisect_right(answers, -a.score, key=lambda b: -b.score) for a in answers]
    ends = list(accumulate(len(answers) - first for first in worse))
    pairs = []
    for n in random.Random(f"{seed}/ranked pairs/{question.id}").sample(range(ends[-1]), min(count, ends[-1])):
        i = bisect_left(ends, n + 1)
        pairs.append((answers[i], answers[len(answers) + n - ends[i]]))
    return pairs


def _labelled(chat: ChatFormat, question: RankedQuestion, text: str, right: str, wrong: str) -> LabelledPair:
    a, b = (chat.example(question.turns, f"{label.strip()} {text}").ids for label in (right, wrong))
    prompt = len(chat.prompt_ids(question.turns))
    labelled = chat.prompt_ids(question.turns, prefill=right.strip())
    start = next((i for i, (x, y) in enumerate(zip(a, labelled, strict=False)) if x != y), len(labelled))
    return LabelledPair(a, b, 1.0, "human", prompt, start)


def _question(record: Record) -> RankedQuestion:
    """The question with its answers, in its order. Raises SkipRecord where there is nothing to compare."""
    text = _words(record.text("question"))
    given = record.value("answers")
    if not isinstance(given, list):
        raise DataError(f"{record.place}: 'answers' must be a list of objects with text and pm_score (or votes)")
    answers = [_answer(record, i, answer) for i, answer in enumerate(given)]
    kept = {answer.text: answer for answer in reversed(answers) if answer.text}
    if not text:
        raise SkipRecord("no question")
    if len({answer.score for answer in kept.values()}) < 2:
        raise SkipRecord("no two answers of different scores")
    turns = (Turn("human", text),)
    return RankedQuestion(conversation_id(turns, "helpful"), turns, tuple(reversed(kept.values())))


def _answer(record: Record, i: int, answer: object) -> RankedAnswer:
    if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
        raise DataError(f"{record.place}: answers[{i}] must be an object with a text and pm_score (or votes)")
    if answer.get("pm_score") is not None:
        score = _whole(record, i, "pm_score", answer["pm_score"])
    else:
        accepted = answer.get("selected") or False
        if not isinstance(accepted, bool):
            raise DataError(f"{record.place}: answers[{i}].selected={repr(accepted)[:40]}: must be true or false")
        score = answer_score(_whole(record, i, "votes", answer.get("votes")), accepted)
    return RankedAnswer(_words(answer["text"]), score)


def _whole(record: Record, i: int, key: str, value: Any) -> int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or abs(value) > 1e12:
        shown = "nothing" if value is None else repr(value)[:40]
        raise DataError(f"{record.place}: answers[{i}].{key} must be a whole number, found {shown}")
    return int(value)


def _words(text: str) -> str:
    """Plain text; empty where it is too long to be looked at."""
    return "" if len(text) > LONGEST else safe_text(plain_text(safe_text(text)))
