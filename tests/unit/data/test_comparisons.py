"""Human comparisons: the chosen answer is the better one, and where it stands tells nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai_dist.config.data import ComparisonSource
from cai_dist.data.comparisons import load_comparison_set
from cai_dist.errors import DataError
from cai_dist.types import Comparison, Turn


def write(path: Path, rows: list[dict]) -> ComparisonSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ComparisonSource(source=str(path), heldout=0)


def load_comparisons(given: ComparisonSource, seed: int) -> list[Comparison]:
    return list(load_comparison_set(given, seed).comparisons)


def plain(n: int) -> list[dict]:
    return [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(n)]


def test_the_label_says_which_one_was_chosen_and_both_sides_come_up(tmp_path: Path) -> None:
    found = load_comparisons(write(tmp_path / "c.jsonl", plain(400)), 0)
    for c in found:
        better, worse = (c.response_a, c.response_b) if c.p_a == 1.0 else (c.response_b, c.response_a)
        assert better.startswith("good") and worse.startswith("bad") and c.p_a in (0.0, 1.0)
    # Binomial(400, 1/2): standard deviation 10.
    assert 140 < sum(c.p_a for c in found) < 260
    assert {c.source for c in found} == {"human"} and {c.prompt.kind for c in found} == {"helpful"}


def test_sides_follow_content_and_seed_not_the_file(tmp_path: Path) -> None:
    rows = plain(50)
    found = load_comparisons(write(tmp_path / "a.jsonl", rows), 0)
    assert found == load_comparisons(write(tmp_path / "b.jsonl", rows[::-1]), 0)
    other = load_comparisons(write(tmp_path / "a.jsonl", rows), 1)
    assert {c.prompt.id: c.p_a for c in found} != {c.prompt.id: c.p_a for c in other}
    limited = ComparisonSource(source=str(tmp_path / "a.jsonl"), limit=7, heldout=0)
    assert load_comparisons(limited, 0) == found[:7]


def test_the_hh_layout_is_split_where_the_dialogues_part(tmp_path: Path) -> None:
    rows = [
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: good",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: bad",
        },
        {
            "chosen": "\n\nHuman: d\n\nAssistant: e",
            "rejected": "\n\nHuman: d\n\nAssistant: f\n\nHuman: g\n\nAssistant: h",
        },
    ]
    by_prompt = {c.prompt.turns[-1].text: c for c in load_comparisons(write(tmp_path / "c.jsonl", rows), 0)}
    assert by_prompt["c"].prompt.turns[:2] == (Turn("human", "a"), Turn("assistant", "b"))
    assert {by_prompt["c"].response_a, by_prompt["c"].response_b} == {"good", "bad"}
    assert {by_prompt["d"].response_a, by_prompt["d"].response_b} == {"e", "f"}


def test_pairs_without_a_choice_are_counted(tmp_path: Path) -> None:
    rows = [
        *plain(2),
        plain(1)[0],
        {"prompt": "q", "chosen": "same", "rejected": "same "},
        {"prompt": "q", "chosen": "", "rejected": "x"},
        {"chosen": "no dialogue", "rejected": "at all"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: d"},
    ]
    found = load_comparison_set(write(tmp_path / "c.jsonl", rows), 0)
    assert (len(found.comparisons), found.records, found.duplicates, found.skipped) == (2, 7, 1, 4)


@pytest.mark.parametrize("row", [{"prompt": "q", "chosen": "x"}, {"rejected": "x"}, {"chosen": 1, "rejected": "x"}])
def test_malformed_records_are_named(tmp_path: Path, row: dict) -> None:
    with pytest.raises(DataError, match=r"c\.jsonl:2: "):
        load_comparisons(write(tmp_path / "c.jsonl", [*plain(1), row]), 0)


def test_too_few(tmp_path: Path) -> None:
    source = write(tmp_path / "c.jsonl", plain(3))
    with pytest.raises(DataError, match="3 usable comparisons, 4 wanted"):
        load_comparisons(ComparisonSource(source=source.source, limit=4), 0)
    with pytest.raises(DataError, match="at least 1 wanted"):
        load_comparisons(write(tmp_path / "c.jsonl", []), 0)


@pytest.mark.parametrize("limit", [None, 60])
def test_what_is_set_aside_shares_no_conversation_with_what_is_learned(tmp_path: Path, limit: int | None) -> None:
    # 40 conversations, each at three lengths.
    start = "\n\nHuman: question {}\n\nAssistant: yes\n\nHuman: more {}\n\nAssistant: "
    rows = [
        {"chosen": start.format(i % 40, i) + f"good {i}", "rejected": start.format(i % 40, i) + f"bad {i}"}
        for i in range(120)
    ]
    path = tmp_path / "c.jsonl"
    write(path, rows)
    found = load_comparisons(ComparisonSource(source=str(path), limit=limit, heldout=10), 0)
    apart = {split: [c for c in found if c.prompt.split == split] for split in ("train", "heldout")}
    openings = {split: {c.prompt.turns[0].text for c in side} for split, side in apart.items()}
    assert openings["train"] and openings["heldout"] and not openings["train"] & openings["heldout"]
    assert found == apart["train"] + apart["heldout"] and len(apart["heldout"]) <= 10
    if limit:  # those to learn from are the same whether any are set aside or not
        assert apart["train"] == load_comparisons(ComparisonSource(source=str(path), limit=limit, heldout=0), 0)


def test_without_a_limit_at_most_a_tenth_is_set_aside(tmp_path: Path) -> None:
    given = write(tmp_path / "c.jsonl", plain(50)).model_copy(update={"heldout": 200})
    assert [c.prompt.split for c in load_comparisons(given, 0)] == ["train"] * 45 + ["heldout"] * 5
    few = write(tmp_path / "d.jsonl", plain(9)).model_copy(update={"heldout": 200})
    assert {c.prompt.split for c in load_comparisons(few, 0)} == {"train"}
