"""No column with words is dropped in silence: it is used, named harmless, named by the run, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.data import ComparisonSource, DataSource, PromptSource, RankedSource, RatingSource
from cai_dist.config.loading.load import build_run, dump_run
from cai_dist.data.choices import load_choice_set
from cai_dist.data.columns import harmless, holds_words
from cai_dist.data.comparisons import load_comparison_set
from cai_dist.data.prompts import load_prompt_set
from cai_dist.data.ranked import load_ranked_set
from cai_dist.data.ratings import load_rating_set
from cai_dist.errors import ConfigError, DataError


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompts(source: str | DataSource) -> set[str]:
    found = load_prompt_set(PromptSource(source=source, heldout=1), "red_team", 0)
    return {p.turns[-1].text for p in found.prompts}


@pytest.mark.parametrize("column", ["notes", "title", "document", "body", "premise", "text", "context", ""])
def test_words_in_a_column_that_the_layout_does_not_know_are_refused_with_the_way_out(column: str, tmp_path) -> None:
    rows = [{"prompt": f"Summarise {i}.", column: "" if i < 2 else "The kite."} for i in range(4)]
    path = write(tmp_path / "p.jsonl", *rows)
    with pytest.raises(DataError) as caught:
        prompts(path)
    said = str(caught.value)
    assert said.startswith(f"{path}:3: column {column!r} holds words, and the layout prompt does not use it")
    assert "under" not in said.split("source give")[0] and "ignore: [" in said and "{prompt: [prompt, " in said
    assert "data.red_team.source" in said and "\n" not in said


@pytest.mark.parametrize("column", ["task", "info", "topic"])
def test_a_text_to_work_on_is_no_note_whatever_its_column_is_called(column: str, tmp_path: Path) -> None:
    notes = [{"prompt": f"Summarise {i}.", column: "kites"} for i in range(4)]
    assert len(prompts(write(tmp_path / "notes.jsonl", *notes))) == 4
    for passage in ("The kite rose. " * 20, "The kite rose.\nIt fell."):
        path = write(tmp_path / "p.jsonl", *notes, {"prompt": "Summarise this.", column: passage})
        with pytest.raises(DataError, match=f"p.jsonl:5: column '{column}' holds words"):
            prompts(path)


def test_both_ways_out_that_the_message_names(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", *({"prompt": f"Summarise {i}.", "notes": "The kite."} for i in range(4)))
    assert prompts(DataSource(path=path, ignore=("notes",))) == {f"Summarise {i}." for i in range(4)}
    joined = DataSource(path=path, columns={"prompt": ("prompt", "notes")})
    assert prompts(joined) == {f"Summarise {i}.\n\nThe kite." for i in range(4)}


def test_columns_of_other_names(tmp_path: Path) -> None:
    rows = [{"Behavior": f"Do {i}.", "Context": "" if i else "With this.", "goal_nr": i} for i in range(3)]
    path = write(tmp_path / "p.jsonl", *rows)
    with pytest.raises(
        DataError, match=r"p.jsonl:1: no layout that is known .* Behavior, Context, goal_nr; name yours"
    ):
        prompts(path)
    named = DataSource(path=path, columns={"prompt": ("Behavior", "Context")})
    assert prompts(named) == {"Do 0.\n\nWith this.", "Do 1.", "Do 2."}
    pairs = write(tmp_path / "c.jsonl", *({"q": f"q{i}", "good": "a", "bad": "b"} for i in range(3)))
    source = DataSource(path=pairs, columns={"prompt": "q", "chosen": "good", "rejected": "bad"})
    found = load_comparison_set(ComparisonSource(source=source, heldout=0), 0).comparisons
    assert {c.prompt.turns[0].text for c in found} == {"q0", "q1", "q2"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"columns": {"prompt": "qestion"}},
            "p.jsonl:1: no column 'qestion', which columns names; the record has: question",
        ),
        ({"columns": {"prompt": "question"}, "ignore": ("nots",)}, "ignore: no record has a column 'nots'"),
        ({"columns": {"n": "question"}}, "columns names 'n', which is a column, too"),
        ({"columns": {"prompt": ("question", "n")}}, "column 'n' must hold a text to be joined"),
    ],
)
def test_a_name_that_is_no_column_is_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", *({"question": f"q{i}", "n": i} for i in range(4)))
    with pytest.raises(DataError) as caught:
        prompts(DataSource(path=path, **settings))
    assert says in str(caught.value) and "\n" not in str(caught.value)


ASKED = [f"question {i}" for i in range(30)]


def with_fifth(line: bytes) -> bytes:
    """A file of 30 prompts and, as its fifth line, another."""
    rows = [json.dumps({"prompt": text}).encode() for text in ASKED]
    return b"\n".join([*rows[:4], line, *rows[4:], b""])


def each(row: Callable[[str], Any]) -> bytes:
    return b"".join(json.dumps(row(text)).encode() + b"\n" for text in ASKED)


ANSWERED = [{"role": "assistant", "content": "ok"}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (with_fifth(b'{"promt": "x y z"}'), "p.jsonl:5: no layout that is known (docs/data.md) has these columns: pro"),
        (with_fifth(b'{"promt": "x y z"}'), "; did you mean 'prompt' by 'promt'?"),
        (with_fifth(b'{"prompt": "a b c",}'), "p.jsonl:5: not a line of JSON in UTF-8: "),
        ('{"prompt": "ändern"}'.encode("latin-1"), "p.jsonl:1: not a line of JSON in UTF-8: "),
        (each(str), 'p.jsonl:1: expected a JSON object, found a text; a prompt is {"prompt": "…"}'),
        (each(lambda text: {"prompt": [{"role": "user", "content": text}, *ANSWERED]}),
         "of 30 records 30 skipped: the prompt ends with an answer (first: "),
    ],
)  # fmt: skip
def test_broken_files_of_prompts_are_one_line(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(DataError) as caught:
        prompts(str(tmp_path / "p.jsonl"))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        each(lambda text: {"messages": [{"role": "user", "content": text}]}),
        json.dumps([{"prompt": text} for text in ASKED], indent=1).encode(),
        with_fifth(b'{"prompt": ""}'),
    ],
)
def test_files_with_nothing_wrong_but_their_form_are_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    assert prompts(str(tmp_path / "p.jsonl")) == set(ASKED)


def test_an_empty_prompt_is_counted_and_its_line_named(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(with_fifth(b'{"prompt": ""}'))
    found = load_prompt_set(PromptSource(source=str(tmp_path / "p.jsonl"), heldout=1), "red_team", 0)
    assert found.report.why() == f"1 skipped: the prompt is empty (first: {tmp_path}/p.jsonl:5)"


def test_every_kind_of_data_refuses_words_that_it_does_not_use(tmp_path: Path) -> None:
    answers = [{"text": "yes", "pm_score": 2}, {"text": "no", "pm_score": 0}]
    for name, row, load in (
        ("c", {"prompt": "q", "chosen": "a", "rejected": "b"},
         lambda s: load_comparison_set(ComparisonSource(source=s), 0)),
        ("r", {"prompt": "q", "response": "a", "rating": 1}, lambda s: load_rating_set(RatingSource(source=s), 0)),
        ("k", {"question": "q", "answers": answers}, lambda s: load_ranked_set(RankedSource(source=s), 0)),
        ("m", {"input": "q", "target_scores": {"a": 1, "b": 0}}, load_choice_set),
    ):  # fmt: skip
        path = write(tmp_path / f"{name}.jsonl", {**row, "background": "The text."})
        with pytest.raises(DataError, match=f"{name}.jsonl:1: column 'background' holds words"):
            load(path)


def test_names_that_say_that_a_column_holds_no_text_of_the_record() -> None:
    for name in (
        "id", "prompt_id", "source", "response_0_source", "is_response_0_safe", "score_chosen", "chosen-rating",
        "category", "chosen-model", "c_root_id_A", "created_at_utc_B", "upvote_ratio", "model_type", "language",
        "__index_level_0__", "Unnamed: 0", "conversation_id", "openai_moderation", "red_team_member_id",
        "response_0_sha256",
    ):  # fmt: skip
        assert harmless(name), name
    for name in (
        "input",
        "context",
        "title",
        "text",
        "chosen",
        "response_0",
        "prompt_b",
        "history",
        "human",
        "a",
        "notes",
    ):
        assert not harmless(name), name


def test_what_words_are() -> None:
    for value in ("word", "7 apples", ["", {"a": ["x"]}], b"\x00", "Grüße", "苹果"):
        assert holds_words(value), value
    for value in ("", " \n", "12.5", "True", "none", None, 3, 2.5, True, [], {"a": [1, ""]}, b"", "2020/01/01"):
        assert not holds_words(value), value


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({}, "data.red_team.source.path: give path or hub, and not both"),
        ({"path": "a", "hub": "b"}, "data.red_team.source.path: give path or hub, and not both"),
        ({"path": "a", "revision": "main"}, "data.red_team.source.revision='main': is for data sets of the hub"),
        (
            {"path": "a", "columns": {"prompt": "q"}, "ignore": ["prompt"]},
            "data.red_team.source.ignore=['prompt']: named under",
        ),
        (
            {"path": "a", "colums": {}},
            "data.red_team.source.colums={}: unknown key; did you mean data.red_team.source.columns?",
        ),
        (3, "data.red_team.source=3: must be text (quote it if it looks like a number) or a section"),
        ({"hub": 3}, "data.red_team.source.hub=3: must be text"),
    ],
)
def test_a_source_as_a_section(section: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_run({"name": "t", "data": {"red_team": {"source": section}}})
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_source_as_a_section_is_written_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", str(tmp_path))
    source = {"path": "${HERE}/p.jsonl", "columns": {"prompt": ["a", "b"]}, "ignore": ["c"]}
    run = build_run({"name": "t", "data": {"red_team": {"source": source}}})
    found = run.data.red_team.source
    assert (
        isinstance(found, DataSource)
        and found.path == f"{tmp_path}/p.jsonl"
        and found.columns == {"prompt": ("a", "b")}
    )
    import yaml

    assert build_run(yaml.safe_load(dump_run(run))) == run
    assert hash(found) == hash(found.model_copy())
