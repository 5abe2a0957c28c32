"""Ranked answers of people: what is read of a file, how votes become scores, and pairs whose label tells nothing."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from cai_dist.config.data import RankedSource
from cai_dist.config.preference import PmPretrainingConfig
from cai_dist.data.chat import ChatFormat
from cai_dist.data.html_text import plain_text
from cai_dist.data.ranked import answer_score, check_labels, drawn_answers, labelled_pairs, load_ranked_set
from cai_dist.errors import ConfigError, DataError
from cai_dist.types import RankedAnswer, RankedQuestion, Turn
from cai_dist.world.tokenizer import build_tokenizer

WORDS = PmPretrainingConfig(good="safe", bad="wrong")
"""Labels that the micro-world's tokenizer knows."""


def chat() -> ChatFormat:
    return ChatFormat(build_tokenizer())


def question(*scores: int, name: str = "q") -> RankedQuestion:
    answers = tuple(RankedAnswer("melt " * (i + 1) + ".", score) for i, score in enumerate(scores))
    return RankedQuestion(name, (Turn("human", "make rope belum ?"),), answers)


def write(path: Path, *rows: Any) -> RankedSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RankedSource(source=str(path))


def row(n: int, *answers: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    given = [{"answer_id": i, "author": "x", "text": text, **more} for i, (text, more) in enumerate(answers)]
    return {"qid": n, "question": f"<p>question {n}</p>", "answers": given, "date": "2020", "metadata": []}


def test_the_score_of_votes() -> None:
    # log2(1 + 0) = 0, log2(1 + 3) = 2, log2(1 + 4) = 2.32, log2(1 + 5) = 2.58
    assert [answer_score(votes, False) for votes in (-3, 0, 1, 3, 4, 5, 1023)] == [-1, 0, 1, 2, 2, 3, 10]
    assert [answer_score(votes, True) for votes in (-3, 0, 3)] == [-1, 1, 3]


def test_both_layouts_are_read_and_the_rest_is_counted(tmp_path: Path) -> None:
    source = write(
        tmp_path / "r.jsonl",
        row(1, ("<p>A &lt; B</p>", {"pm_score": 3, "selected": False}), ("no", {"pm_score": -1, "selected": True})),
        row(2, ("yes", {"votes": 3, "selected": True}), ("no", {"votes": 3, "selected": False}), ("  ", {"votes": 9})),
        row(3, ("same", {"pm_score": 1}), ("score", {"pm_score": 1.0})),
        row(4, ("alone", {"votes": 1})),
        row(1, ("again", {"votes": 1}), ("other", {"votes": 9})),
    )
    found = load_ranked_set(source, 0)
    assert (found.records, found.duplicates, found.skipped) == (5, 1, 2)
    by_text = {q.turns[0].text: q.answers for q in found.questions}
    assert by_text == {
        "question 1": (RankedAnswer("A < B", 3), RankedAnswer("no", -1)),
        "question 2": (RankedAnswer("yes", 3), RankedAnswer("no", 2)),
    }


def test_the_hubs_parquet_file_is_read_like_lines(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row(n, ("a", {"pm_score": 1, "selected": False}), ("b", {"pm_score": 2, "selected": True})) for n in (1, 2)]
    for one in rows:
        del one["metadata"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    lines = load_ranked_set(write(tmp_path / "r.jsonl", *rows), 0).questions
    assert load_ranked_set(RankedSource(source=str(tmp_path / "r.parquet")), 0).questions == lines
    assert len(lines) == 2


def test_which_questions_follows_from_the_seed_and_the_content(tmp_path: Path) -> None:
    rows = [row(n, ("a", {"votes": 1}), ("b", {"votes": 9})) for n in range(30)]
    whole = load_ranked_set(write(tmp_path / "a.jsonl", *rows), 0).questions
    assert load_ranked_set(write(tmp_path / "b.jsonl", *rows[::-1]), 0).questions == whole
    assert load_ranked_set(RankedSource(source=str(tmp_path / "b.jsonl"), limit=4), 0).questions == whole[:4]
    assert load_ranked_set(write(tmp_path / "a.jsonl", *rows), 1).questions != whole
    with pytest.raises(DataError, match="30 questions with two answers of different scores, 31 wanted"):
        load_ranked_set(RankedSource(source=str(tmp_path / "a.jsonl"), limit=31), 0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"question": "q", "answers": "none"}, r":1: 'answers' must be a list"),
        ({"question": None, "answers": []}, r":1: 'question' must be a text"),
        ({"question": "q", "answers": [{"pm_score": 1}]}, r"answers\[0\] must be an object with a text"),
        (
            {"question": "q", "answers": [{"text": "a", "pm_score": 1.5}]},
            r"answers\[0\].pm_score must be a whole number",
        ),
        ({"question": "q", "answers": [{"text": "a", "votes": True}]}, r"answers\[0\].votes must be a whole number"),
        ({"question": "q", "answers": [{"text": "a"}]}, r"answers\[0\].votes must be a whole number, found nothing"),
        (
            {"question": "q", "answers": [{"text": "a", "votes": 1, "selected": 3}]},
            r"selected=3: must be true or false",
        ),
    ],
)
def test_a_malformed_record_is_one_line_with_its_place(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_ranked_set(write(tmp_path / "r.jsonl", bad), 0)
    assert "\n" not in str(caught.value)


def test_html_becomes_what_a_person_reads() -> None:
    html = (
        "<p>Use <code>a &lt; b</code>\n and <a href='http://x'>this\n link</a>.</p>\n\n<pre><code>def f():\n"
        "    return 1\n</code></pre><ul><li>one</li>\n<li>two</li></ul><script>steal()</script><!-- not this -->"
    )
    assert plain_text(html) == "Use a < b and this link.\n\ndef f():\n    return 1\n\n- one\n- two"
    # What is no HTML stays as it is.
    for text in ("vector<int> x;", "a < b and b > c", "a &lt; b", "two\n\n  lines"):
        assert plain_text(text) == text


@pytest.mark.parametrize("piece", ["<", "<a ", "<!--", "</", "<a b='", "<pre> ", "<script>", " \t", "&#"])
def test_hostile_markup_takes_no_longer_than_its_length(piece: str) -> None:
    started = time.monotonic()
    plain_text("<p>" + piece * (100_000 // len(piece)))
    assert time.monotonic() - started < 20, "a parser that goes back over the text takes minutes for some of these"


def test_every_pair_of_answers_becomes_two_in_which_the_label_tells_nothing() -> None:
    [first, second], too_long = labelled_pairs([question(0, 5)], chat(), WORDS, 64, 0)
    said = [chat().response_text(ids) for pair in (first, second) for ids in (pair.ids_a, pair.ids_b)]
    # The better answer is `melt melt .`: GOOD:A > BAD:A, then BAD:B > GOOD:B. Each label is as often the better one.
    tails = [text.split("assistant> ")[-1] for text in said]
    assert [tail.split("?")[-1].strip() for tail in tails] == [
        "safe melt melt .",
        "wrong melt melt .",
        "wrong melt .",
        "safe melt .",
    ]
    assert too_long == 0 and {first.p_a, second.p_a} == {1.0}


def test_the_language_loss_begins_after_the_label() -> None:
    c = chat()
    for pair in labelled_pairs([question(0, 5, 2, name=f"q{n}") for n in range(5)], c, WORDS, 64, 0)[0]:
        conversation = c.prompt_ids((Turn("human", "make rope belum ?"),))
        assert pair.ids_a[: pair.prompt_tokens] == conversation == pair.ids_b[: pair.prompt_tokens]
        # One label word, in which alone both sides differ.
        assert pair.answer_start == pair.prompt_tokens + 1
        assert pair.ids_a[pair.answer_start :] == pair.ids_b[pair.answer_start :]
        assert pair.ids_a[pair.prompt_tokens] != pair.ids_b[pair.prompt_tokens]
        assert pair.ids_a[-1] == c.eos_id


def test_pairs_are_drawn_once_each_and_never_of_equal_scores() -> None:
    q = question(1, 1, 4, 0)
    scores = sorted((a.score, b.score) for a, b in drawn_answers(q, 100, 0))
    assert scores == [(1, 0), (1, 0), (4, 0), (4, 1), (4, 1)]
    assert len(drawn_answers(q, 2, 0)) == 2 and drawn_answers(q, 2, 0) == drawn_answers(q, 2, 0)
    assert len({tuple(drawn_answers(q, 1, seed)) for seed in range(40)}) == 5


def test_with_an_answer_that_is_too_long_its_partner_goes_too() -> None:
    longer = question(0, 5)
    lengths = [len(p.ids_a) for p in labelled_pairs([longer], chat(), WORDS, 64, 0)[0]]
    assert lengths[0] == lengths[1] + 1
    assert labelled_pairs([longer], chat(), WORDS, lengths[1], 0) == ([], 1)
    assert len(labelled_pairs([longer], chat(), WORDS, lengths[0], 0)[0]) == 2


def test_labels_that_the_tokenizer_does_not_know_are_refused() -> None:
    check_labels(chat(), WORDS)
    with pytest.raises(ConfigError, match=r"^preference.pretraining.good='SPLENDID:': .* does not know it") as caught:
        check_labels(chat(), PmPretrainingConfig(good="SPLENDID:", bad="wrong"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^preference.pretraining.bad='<eos>'"):
        check_labels(chat(), PmPretrainingConfig(good="safe", bad="<eos>"))


def test_labels_that_are_the_same_tokens_are_refused() -> None:
    # A tokenizer that drops case cannot tell them apart.
    from tokenizers.normalizers import Lowercase

    backend = Tokenizer(WordLevel({"<unk>": 0, "<eos>": 1, "good": 2}, unk_token="<unk>"))
    backend.pre_tokenizer, backend.normalizer = WhitespaceSplit(), Lowercase()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>")
    labels = PmPretrainingConfig(good="good", bad="GOOD")
    with pytest.raises(ConfigError, match="same tokens|does not know it"):
        check_labels(ChatFormat(tokenizer, "plain"), labels)


def test_labels_must_be_two_different_texts() -> None:
    for good, bad in (("", "BAD:"), ("x", " x "), ("x", "  ")):
        with pytest.raises(ValueError, match="must be two different texts"):
            PmPretrainingConfig(good=good, bad=bad)


@pytest.mark.parametrize(
    "text",
    [
        "std::vector<A> v; Map<P, I> m;",
        "if a <b and c> d then stop",
        "List<B> xs\n\n\n  keep   this",
        "x < 3 && y </ 4",
    ],
)
def test_a_text_with_type_parameters_is_no_html(text: str) -> None:
    assert plain_text(text) == text


def test_html_of_many_spellings() -> None:
    assert plain_text("<P>one</P><p>two") == "one\n\ntwo"
    assert plain_text("one<br/>two") == plain_text("one<BR>two") == "one\ntwo"
    assert plain_text("see <img src='x'> here") == "see here"


def test_a_script_without_its_end_hides_nothing() -> None:
    assert plain_text("<p>before</p><script>the rest") == "before\n\nthe rest"
    assert plain_text("<p>a</p><script>x = '<script>'</script>b<style>c") == "a\n\nbc"


def test_pairs_of_very_many_answers_are_drawn_without_a_list_of_them() -> None:
    q = RankedQuestion("q", (Turn("human", "?"),), tuple(RankedAnswer(str(i), i // 2) for i in range(3000)))
    tracemalloc.start()
    drawn = drawn_answers(q, 5, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(drawn) == 5 and all(a.score > b.score for a, b in drawn)
    assert peak < 8 << 20  # bytes; four and a half million pairs would be hundreds of MiB
