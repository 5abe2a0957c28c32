"""Prompts from files: every layout, stable ids, a held-out part that nothing leaks into."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cai_dist.config.data import PromptSource
from cai_dist.data.prompts import PromptSet, load_prompt_set
from cai_dist.data.reading import ReadReport
from cai_dist.errors import DataError
from cai_dist.types import Prompt, PromptKind, Turn


def write(path: Path, rows: list) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def source(path: Path, limit: int | None = None, heldout: int = 1) -> PromptSource:
    return PromptSource(source=str(path), limit=limit, heldout=heldout)


def load_prompts(given: PromptSource, kind: PromptKind, seed: int) -> list[Prompt]:
    return list(load_prompt_set(given, kind, seed).prompts)


def texts(prompts: list[Prompt]) -> set[str]:
    return {p.turns[-1].text for p in prompts}


def plain(n: int) -> list[dict]:
    return [{"prompt": f"question {i}"} for i in range(n)]


def test_hh_prompt_is_what_both_dialogues_share(tmp_path: Path) -> None:
    rows = [
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: good",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: bad",
        },
        {
            "chosen": "\n\nHuman: d\n\nAssistant: e",
            "rejected": "\n\nHuman: d\n\nAssistant: f\n\nHuman: g\n\nAssistant: h",
        },
        {"chosen": "\n\nHuman: x\n\nAssistant: same", "rejected": "\n\nHuman: x\n\nAssistant: same"},
    ]
    found = load_prompts(source(write(tmp_path / "hh.jsonl.gz", rows)), "red_team", 0)
    by_end = {p.turns[-1].text: p for p in found}
    assert by_end["c"].turns == (Turn("human", "a"), Turn("assistant", "b"), Turn("human", "c"))
    assert by_end["d"].turns == (Turn("human", "d"),)
    assert by_end["x"].turns == (Turn("human", "x"),)
    assert {p.kind for p in found} == {"red_team"}


def test_self_instruct_joins_instruction_and_input(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Translate.", "instances": [{"input": "Guten Tag", "output": "Good day"}]},
        {"instruction": "Tell a story.", "instances": [{"input": "", "output": "Once"}]},
        {"instruction": "Sing."},
    ]
    found = load_prompts(source(write(tmp_path / "s.jsonl", rows)), "helpful", 0)
    assert texts(found) == {"Translate.\n\nGuten Tag", "Tell a story.", "Sing."}


def test_plain_prompts_as_text_dialogue_or_messages(tmp_path: Path) -> None:
    rows = [
        {"prompt": "one"},
        {"prompt": "\n\nHuman: two\n\nAssistant: yes\n\nHuman: three\n\nAssistant:"},
        {"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "four"}]},
        {"prompt": "I asked. Human: is a word, not a label"},
    ]
    found = load_prompts(source(write(tmp_path / "p.jsonl", rows)), "helpful", 0)
    by_end = {p.turns[-1].text: p.turns for p in found}
    assert [t.role for t in by_end["three"]] == ["human", "assistant", "human"]
    assert by_end["four"] == (Turn("system", "Be kind."), Turn("human", "four"))
    assert by_end["I asked. Human: is a word, not a label"][0].role == "human"
    assert len(by_end) == 4


def test_parquet_holds_the_same_columns(tmp_path: Path) -> None:
    table = pa.table({"prompt": [f"question {i}" for i in range(5)]})
    pq.write_table(table, tmp_path / "p.parquet")
    from_parquet = load_prompts(source(tmp_path / "p.parquet", heldout=2), "helpful", 3)
    assert from_parquet == load_prompts(source(write(tmp_path / "p.jsonl", plain(5)), heldout=2), "helpful", 3)


def test_a_broken_parquet_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError) as caught:
        load_prompts(source(tmp_path / "p.parquet"), "helpful", 0)
    assert "p.parquet" in str(caught.value) and "\n" not in str(caught.value)


def test_duplicates_and_empty_dialogues_are_counted(tmp_path: Path) -> None:
    rows = [*plain(4), {"prompt": "question 2"}, {"prompt": " question 2\r\n"}, {"prompt": ""}, {"prompt": []}]
    rows.append({"prompt": "\n\nHuman: hi\n\nAssistant: I answered already"})
    found = load_prompt_set(source(write(tmp_path / "p.jsonl", rows)), "helpful", 0)
    why = {"the prompt is empty": 2, "the prompt ends with an answer": 1}
    first = {"the prompt is empty": f"{tmp_path}/p.jsonl:7", "the prompt ends with an answer": f"{tmp_path}/p.jsonl:9"}
    report = ReadReport(str(tmp_path / "p.jsonl"), records=9, duplicates=2, skipped=why, first=first)
    assert found == PromptSet(found.prompts, report)
    assert (found.skipped, found.too_long, report.used) == (3, 0, 4)
    assert len(found.prompts) == 4


def test_ids_follow_content_alone(tmp_path: Path) -> None:
    ids = {p.turns[0].text: p.id for p in load_prompts(source(write(tmp_path / "a.jsonl", plain(9))), "helpful", 0)}
    again = {
        p.turns[0].text: p.id for p in load_prompts(source(write(tmp_path / "b.jsonl", plain(9)[::-1])), "helpful", 5)
    }
    assert ids == again and len(set(ids.values())) == 9
    other = load_prompts(source(tmp_path / "a.jsonl"), "red_team", 0)
    assert not {p.id for p in other} & set(ids.values())


def split(found: list[Prompt], name: str) -> list[str]:
    return [p.id for p in found if p.split == name]


def test_the_heldout_part_depends_on_neither_limit_nor_order(tmp_path: Path) -> None:
    path, turned = write(tmp_path / "a.jsonl", plain(50)), write(tmp_path / "b.jsonl", plain(50)[::-1])
    whole = load_prompts(source(path, heldout=10), "helpful", 1)
    small = load_prompts(source(turned, limit=5, heldout=10), "helpful", 1)
    assert split(whole, "heldout") == split(small, "heldout") and len(split(whole, "heldout")) == 10
    assert split(whole, "train")[:5] == split(small, "train")
    assert not set(split(whole, "heldout")) & set(split(whole, "train"))
    assert split(load_prompts(source(path, heldout=10), "helpful", 2), "heldout") != split(whole, "heldout")


def test_conversations_with_one_opening_stay_on_one_side(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"\n\nHuman: opening {i}" + "".join(f"\n\nAssistant: r{k}\n\nHuman: more {k}" for k in range(depth))}
        for i in range(20)
        for depth in range(3)
    ]
    path = write(tmp_path / "a.jsonl", rows)
    for seed in range(5):
        found = load_prompts(source(path, heldout=10), "red_team", seed)
        sides = {name: {p.turns[0].text for p in found if p.split == name} for name in ("train", "heldout")}
        assert not sides["train"] & sides["heldout"]
        assert len(split(found, "heldout")) == 10


@pytest.mark.parametrize("limit", [None, 5])
def test_too_few_prompts(tmp_path: Path, limit: int | None) -> None:
    path = write(tmp_path / "p.jsonl", plain(5))
    with pytest.raises(DataError, match="5 different prompts are too few for 5 held-out and"):
        load_prompts(source(path, limit, heldout=5), "helpful", 0)
    assert len(load_prompts(source(path, None, heldout=4), "helpful", 0)) == 5


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{not json", "not a line of JSON"),
        ("[1, 2]", "expected a JSON object, found a list"),
        ("null", "expected a JSON object"),
        ('{"question": "x"}', "prompt, chosen, instruction"),
        ('{"prompt": 3}', "'prompt' must be a text, found a number"),
        ('{"prompt": [{"role": "wizard", "content": "x"}]}', "prompt[0]"),
        ('{"prompt": ["x"]}', "prompt[0]"),
        ('{"chosen": "\\n\\nHuman: x"}', "'rejected' must be a text, found nothing"),
        ('{"instruction": "x", "instances": ["y"]}', "instances"),
        ('{"instruction": null}', "'instruction' must be a text, found null"),
        ("[" * 100_000, "not a line of JSON"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path / "p.jsonl", [*plain(2), "", line, *plain(9)])
    with pytest.raises(DataError) as caught:
        load_prompts(source(path), "helpful", 0)
    message = str(caught.value)
    assert f"{path}:4: " in message and says in message and "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", b"this is not gzip"),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "x"}\n' * 500, mtime=0)[:-9]),
        ("a.jsonl", b'{"prompt": "\xff\xfe"}\n'),
        ("a.txt", b"prompt\nx\n"),
        ("a.jsonl", b""),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_prompts(source(tmp_path / name), "helpful", 0)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_prompts(source(tmp_path / "no.jsonl"), "helpful", 0)


def test_hostile_characters_become_harmless(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a\\ud800b\\u0000c\\r\\nd"}\n{"prompt": "\\ud83d\\ude00 fine"}\n')
    found = load_prompts(source(path), "helpful", 0)
    assert texts(found) == {"a\ufffdbc\nd", "\U0001f600 fine"}
    assert all(t.text.encode() for p in found for t in p.turns)


def test_real_red_team_prompts() -> None:
    root = Path(os.environ.get("CAI_DIST_DATA") or Path(__file__).parents[4] / "shared" / "data")
    files = sorted((root / "hh-rlhf").glob("*.jsonl.gz"))
    if not files:
        pytest.skip(f"no hh-rlhf file at {root}/hh-rlhf; set CAI_DIST_DATA")
    found = load_prompt_set(source(files[0], heldout=50).model_copy(update={"turns": "last"}), "red_team", 0)
    assert found.skipped < found.records / 50 and found.duplicates < found.records / 50
    assert all(p.turns[-1].role == "human" and p.turns[0].role == "human" for p in found.prompts)
    assert not any(
        marker in t.text for p in found.prompts for t in p.turns for marker in ("\n\nHuman:", "\n\nAssistant:")
    )
    several = sum(len(p.turns) > 1 for p in found.prompts)
    assert several > len(found.prompts) / 2


def test_conversations_of_too_many_turns_are_left_out_and_counted(tmp_path: Path) -> None:
    def chat(n: int, name: str) -> dict:
        roles = ("user", "assistant")
        return {"prompt": [{"role": roles[i % 2], "content": f"{name} {i}"} for i in range(n)]}

    path = write(tmp_path / "x.jsonl", [chat(1, "a"), chat(3, "b"), chat(5, "c"), chat(5, "c"), chat(2, "d")])
    found = load_prompt_set(source(path).model_copy(update={"max_turns": 3}), "red_team", 0)
    assert {len(p.turns) for p in found.prompts} == {1, 3}
    assert (found.records, found.too_long, found.skipped, found.duplicates) == (5, 2, 1, 0)
    with pytest.raises(DataError, match=r"raise data\.red_team\.max_turns, which leaves out 3"):
        load_prompt_set(source(path).model_copy(update={"max_turns": 2}), "red_team", 0)


def hh(*turns: str) -> dict:
    """A record of the hh-rlhf layout: human and assistant in turns, then two answers."""
    talk = "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {text}" for i, text in enumerate(turns))
    return {"chosen": f"{talk}\n\nAssistant: good", "rejected": f"{talk}\n\nAssistant: bad"}


def openings(found: PromptSet, split: str) -> set[str]:
    return {p.turns[0].text for p in found.prompts if p.split == split}


def test_a_conversation_gives_a_prompt_for_each_human_turn(tmp_path: Path) -> None:
    rows = [hh("a", "b", "c"), hh("d"), hh("e"), {"prompt": "\n\nHuman: f\n\nAssistant: g\n\nHuman: h"}]
    path = write(tmp_path / "c.jsonl", rows)
    found = load_prompt_set(source(path), "red_team", 1)
    said = {tuple(turn.text for turn in p.turns) for p in found.prompts}
    # The last record names its prompt: it means that one.
    assert said == {("a",), ("a", "b", "c"), ("d",), ("e",), ("f", "g", "h")}
    assert (found.records, found.skipped, found.duplicates) == (4, 0, 0)
    last = load_prompt_set(source(path).model_copy(update={"turns": "last"}), "red_team", 1)
    assert {tuple(turn.text for turn in p.turns) for p in last.prompts} == said - {("a",)}


def test_a_conversation_at_several_lengths_gives_each_prompt_once(tmp_path: Path) -> None:
    rows = [hh("a"), hh("a", "b", "c"), hh("a", "b", "c", "d", "e"), hh("a", "b", "c"), hh("z")]
    found = load_prompt_set(source(write(tmp_path / "c.jsonl", rows)), "red_team", 0)
    ids = [p.id for p in found.prompts]
    assert len(ids) == len(set(ids))
    assert found.duplicates == 1, "the fourth record says nothing new"


@pytest.mark.parametrize("turns", ["each", "last"])
def test_no_part_of_a_held_out_conversation_is_trained_on(turns: str, tmp_path: Path) -> None:
    rows = [hh(*(f"{name} {i}" for i in range(2 * depth + 1))) for depth in (1, 3) for name in "abcdefghijkl"]
    path = write(tmp_path / "c.jsonl", rows)
    for seed in range(3):
        found = load_prompt_set(source(path, heldout=10).model_copy(update={"turns": turns}), "red_team", seed)
        assert openings(found, "train") and not openings(found, "train") & openings(found, "heldout")
        assert [p.split for p in found.prompts].count("heldout") == 10


def test_held_out_are_last_turns_whatever_turns_says(tmp_path: Path) -> None:
    """Prompts of one conversation are no independent observations: a measurement counts a conversation once."""
    path = write(tmp_path / "c.jsonl", [hh(*(f"{name} {i}" for i in range(5))) for name in "abcdefghijkl"])
    each, last = (
        load_prompt_set(source(path, heldout=5).model_copy(update={"turns": turns}), "red_team", 3)
        for turns in ("each", "last")
    )
    held_out = [[p for p in found.prompts if p.split == "heldout"] for found in (each, last)]
    assert held_out[0] == held_out[1] and {len(p.turns) for p in held_out[0]} == {5}
    assert len(each.prompts) - 5 == 3 * (len(last.prompts) - 5)


def test_of_a_long_conversation_the_prompts_that_are_short_enough_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", [hh(*(f"{name} {i}" for i in range(5))) for name in "abc"])
    found = load_prompt_set(source(path).model_copy(update={"max_turns": 3}), "red_team", 0)
    assert {len(p.turns) for p in found.prompts if p.split == "train"} == {1, 3} and found.too_long == 0
    assert {len(p.turns) for p in found.prompts if p.split == "heldout"} == {3}
    with pytest.raises(DataError, match=r"raise data\.red_team\.max_turns, which leaves out 3"):
        load_prompt_set(source(path).model_copy(update={"max_turns": 3, "turns": "last"}), "red_team", 0)


def test_real_conversations_give_more_prompts_than_records() -> None:
    root = Path(os.environ.get("CAI_DIST_DATA") or Path(__file__).parents[4] / "shared" / "data")
    files = sorted((root / "hh-rlhf").glob("*.jsonl.gz"))
    if not files:
        pytest.skip(f"no hh-rlhf file at {root}/hh-rlhf; set CAI_DIST_DATA")
    each = load_prompt_set(source(files[0], heldout=50), "red_team", 0)
    last = load_prompt_set(source(files[0], heldout=50).model_copy(update={"turns": "last"}), "red_team", 0)
    assert len(each.prompts) > 1.8 * len(last.prompts)
    assert {p for p in each.prompts if p.split == "heldout"} == {p for p in last.prompts if p.split == "heldout"}
    assert {p.id for p in last.prompts} <= {p.id for p in each.prompts}


def test_why_records_are_left_out_is_said_where_prompts_run_short(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": ""}, *([{"prompt": [{"role": "assistant", "content": "x"}]}] * 3)])
    with pytest.raises(DataError) as caught:
        load_prompts(source(path), "helpful", 0)
    said = str(caught.value)
    assert "0 different prompts are too few" in said and "of 4 records 1 skipped: the prompt is empty (first: " in said
    assert f"3 skipped: no human turn (first: {path}:2)" in said and "lower data" not in said
