"""A thousand and more mangled inputs: each is read, or is one clear error of one line that names the file; what is
whole in a file that is read is never lost. Every input follows from its number: a failure names it."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cai_dist.config.data import ComparisonSource, PromptSource, RankedSource, RatingSource
from cai_dist.constitution import Constitution, comparison_text, critique_turns, load_constitution
from cai_dist.constitution.lint import lint
from cai_dist.constitution.published import (
    COMPARISON_EXAMPLES,
    COMPARISONS,
    CRITIQUE_EXAMPLES,
    CRITIQUES,
    REASONING_EXAMPLES,
)
from cai_dist.constitution.schema import problem
from cai_dist.data.choices import load_choice_set
from cai_dist.data.comparisons import load_comparison_set
from cai_dist.data.dialogues import SkipRecord
from cai_dist.data.layouts import LayoutReader
from cai_dist.data.prompts import load_prompt_set
from cai_dist.data.ranked import load_ranked_set
from cai_dist.data.ratings import load_rating_set
from cai_dist.data.records import Record
from cai_dist.errors import EXIT_USAGE, CaiError
from cai_dist.types import Turn

RECORDS = 6
FILES = dict.fromkeys(("hh", "plain", "instruction", "comparisons", "ranked", "ratings", "choices"), 300)
"""Mangled files of each kind."""
LAYOUTS = Path(__file__).parent / "data" / "layouts"
PARQUET, YAML, PUBLISHED = 30, 160, 150
NASTY: list[Any] = [
    None,
    True,
    0,
    -1,
    2.5,
    1e308,
    -1e-320,
    10**400,
    [],
    {},
    "",
    " \t\n",
    "\x00",
    "\ud800",
    "a\u2028b",
    "\ufeff",
    "💣" * 50,
    [None],
    [[]],
    [{}],
    {"role": "user"},
    [{"role": "human", "content": None}],
    [{"role": "x", "content": "y"}],
    {"": {"": {}}},
    "\n\nHuman: ",
    "\n\nAssistant: only",
    "\n\nHuman: a\n\nHuman: b",
    "<|im_end|>",
    "{principle}",
    "<p>" * 300,
    "&#xD800; &#0; &#99999999;",
    float("nan"),
    float("inf"),
    "so " * 3000,
    [["x"] * 3] * 3,
]


def record(kind: str, i: int) -> dict[str, Any]:
    """Record `i` of a healthy file; its question is nobody else's."""
    question = f"question number {i} about thing{i}"
    turns = f"\n\nHuman: {question}\n\nAssistant: what of it\n\nHuman: tell me more"
    return {
        "hh": {"chosen": f"{turns}\n\nAssistant: good {i}", "rejected": f"{turns}\n\nAssistant: bad {i}"},
        "plain": {"prompt": [{"role": "user", "content": question}] if i % 2 else question},
        "instruction": {"instruction": question, "instances": [{"input": "with this", "output": "that"}]},
        "comparisons": {"prompt": question, "chosen": f"good {i}", "rejected": f"bad {i}"},
        "ranked": {
            "question": f"<p>{question}</p>",
            "answers": [{"text": "one", "pm_score": 3}, {"text": "two", "votes": 0, "selected": False}],
        },
        "ratings": {"prompt": question, "response": f"answer {i}", "rating": i % 5},
        "choices": {"input": question, "target_scores": {"yes": 1, "no": 0}},
    }[kind]


def load(kind: str, path: Path) -> tuple[list[str], int, int]:
    """(the first human turn of all that was kept, records, records told to be duplicates or skipped)."""
    if kind in ("hh", "plain", "instruction"):
        found: Any = load_prompt_set(PromptSource(source=str(path), heldout=1, turns="last"), "red_team", 0)
        turns = [p.turns for p in found.prompts]
    elif kind == "comparisons":
        found = load_comparison_set(ComparisonSource(source=str(path)), 0)
        turns = [c.prompt.turns for c in found.comparisons]
    elif kind == "ranked":
        found = load_ranked_set(RankedSource(source=str(path)), 0)
        turns = [q.turns for q in found.questions]
    elif kind == "ratings":
        found = load_rating_set(RatingSource(source=str(path)), 0)
        turns = [r.prompt.turns for r in found.ratings]
    else:
        found = load_choice_set(str(path))
        turns = [q.turns for q in found.questions]
    first = [next(t.text for t in one if t.role == "human") for one in turns]
    return first, found.records, getattr(found, "duplicates", 0) + found.skipped


def question_of(kind: str, row: dict[str, Any]) -> str:
    i = next(n for n in range(RECORDS) if record(kind, n) == row)
    return f"question number {i} about thing{i}"


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in plain data."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, key) for key, _ in items] + [place for _, inner in items for place in places(inner)]


def mangle_data(rng: random.Random, data: Any) -> Any:
    """Plain data with something deep in it exchanged, taken out, renamed or doubled."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not (found := places(data)):
            return data
        container, key = rng.choice(found)
        action = rng.randrange(6)
        if action < 3:
            container[key] = copy.deepcopy(rng.choice(NASTY))
        elif action == 3:
            del container[key]
        elif action == 4 and isinstance(container, dict):
            container[rng.choice(["", "Prompt", " prompt", "x" * 500, "prompt\x00"])] = container.pop(key)
        else:
            container[key] = [container[key]] * 2
    return data


def mangle_bytes(rng: random.Random, raw: bytes) -> bytes:
    """Bytes changed, cut, doubled or strewn over, as a bad disk or an editor leaves them."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        a, b = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
        b = min(b, a + 40)
        stray = rng.choice([b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r\n", b'"', b"}", b"[" * 5000])
        raw = rng.choice(
            [
                raw[:a] + raw[b:],
                raw[:a],
                raw[:b] + raw[a:],
                raw[:a] + rng.randbytes(3) + raw[a:],
                raw[:a] + stray + raw[a:],
                raw.replace(b"\n", b"\r\n"),
                raw.decode("utf-8", "replace").encode("utf-16"),
                b"",
                raw[:a] + b"9" * 5000 + raw[b:],
            ]
        )
    return raw


def judged(where: str, path: Path, read: Callable[[], Any]) -> Any:
    """What `read` gives; None where it ends in one clear error."""
    try:
        return read()
    except CaiError as error:
        text = str(error)
        assert error.exit_code == EXIT_USAGE, where
        assert text.strip() and "\n" not in text, f"{where}: {text!r}"
        assert str(path) in text and len(text) < 900 + len(str(path)), f"{where}: {text!r}"
        text.encode("utf-8", "backslashreplace")
        return None


def as_line(row: Any) -> bytes:
    return json.dumps(row).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("kind", FILES)
def test_files_of_records(kind: str, tmp_path: Path) -> None:
    healthy = [record(kind, i) for i in range(RECORDS)]
    read = 0
    for number in range(FILES[kind]):
        rng = random.Random(f"{kind} {number}")
        rows = [record(kind, i) for i in range(RECORDS)]
        lines = [as_line(row) for row in rows]
        if number % 2:
            place = rng.randrange(RECORDS)
            row = [rng.choice(NASTY)] if rng.random() < 0.1 else mangle_data(rng, [rows[place]])
            lines[place] = b"\n".join(as_line(x) for x in row)
        raw = b"\n".join(lines) + b"\n"
        if number % 2 == 0:
            raw = mangle_bytes(rng, raw)
        packed = number % 10 == 4
        path = tmp_path / f"{number}.jsonl{'.gz' if packed else ''}"
        path.write_bytes(
            mangle_bytes(rng, gzip.compress(raw)) if number % 20 == 4 else gzip.compress(raw) if packed else raw
        )
        result = judged(f"{kind} {number}", path, lambda path=path: load(kind, path))  # type: ignore[misc]
        if result is None:
            continue
        read += 1
        kept, records, told = result
        if number % 20 == 4:
            continue  # mangled below the compression: which lines are whole cannot be known
        assert records == sum(bool(line.strip()) for line in raw.split(b"\n")), f"{kind} {number}"
        assert len(kept) + told <= records, f"{kind} {number}"
        whole = [json.loads(line) for line in raw.split(b"\n") if line in [as_line(row) for row in healthy]]
        said = " ".join(kept)
        for row in whole:
            assert question_of(kind, row) in said, f"{kind} {number}: lost"
    assert FILES[kind] // 20 < read < FILES[kind], "of these, some must be readable and some not"


@pytest.mark.parametrize("kind", FILES)
def test_every_nasty_value_in_every_place_of_a_record(kind: str, tmp_path: Path) -> None:
    for place in range(len(places(record(kind, 0)))):
        for number, nasty in enumerate(NASTY):
            rows = [record(kind, i) for i in range(RECORDS)]
            container, key = places(rows[0])[place]
            container[key] = nasty
            path = tmp_path / f"{place}-{number}.jsonl"
            path.write_bytes(b"\n".join(as_line(row) for row in rows))
            result = judged(path.name, path, lambda path=path: load(kind, path))  # type: ignore[misc]
            if result is not None:
                kept, records, told = result
                assert records == RECORDS and len(kept) + told <= RECORDS
                assert all(f"thing{i}" in " ".join(kept) for i in range(1, RECORDS)), f"{path.name}: lost"


@pytest.mark.parametrize("file", sorted(path.name for path in LAYOUTS.glob("*.jsonl")))
def test_records_of_every_layout_mangled(file: str) -> None:
    """What is mangled is read, skipped for a reason, or one clear error that names the record."""
    rows = [json.loads(line) for line in _records(LAYOUTS / file)]
    reader = LayoutReader("data.red_team")
    for number in range(60):
        rng = random.Random(f"{file} {number}")
        data = mangle_data(rng, [copy.deepcopy(rng.choice(rows))])[0:1]
        if not data or not isinstance(data[0], dict):
            continue
        for read in (reader.prompt, reader.pair, reader.rated):
            try:
                found: Any = read(Record("here.jsonl:7", data[0]))
            except SkipRecord as reason:
                assert 0 < len(str(reason)) < 80
            except CaiError as error:
                text = str(error)
                assert error.exit_code == EXIT_USAGE and text.startswith("here.jsonl:7: "), f"{file} {number}: {text}"
                assert "\n" not in text and len(text) < 900, f"{file} {number}"
            else:
                assert found.turns[-1].role == "human" and all(t.text == t.text.strip() != "" for t in found.turns)
                json.dumps([t.text for t in found.turns], ensure_ascii=False).encode()


def _records(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return [json.dumps(row) for row in json.loads(text)] if text.startswith("[") else text.splitlines()


@pytest.mark.parametrize("kind", ["array", "csv", "zst"])
def test_files_of_other_kinds_mangled(kind: str, tmp_path: Path) -> None:
    name = {"array": "json", "csv": "csv", "zst": "jsonl.zst"}[kind]
    for number in range(60):
        rng = random.Random(f"{kind} {number}")
        rows = [{"prompt": f'question {i}, "{i}"', "id": i} for i in range(RECORDS)]
        if kind == "csv":
            raw = b"id,prompt\n" + b"".join(f'{i},"question {i}, ""{i}"""\n'.encode() for i in range(RECORDS))
        elif kind == "array":
            raw = json.dumps(rows, indent=number % 3 or None).encode()
        else:
            raw = pa.compress(b"".join(as_line(row) + b"\n" for row in rows), codec="zstd", asbytes=True)
        path = tmp_path / f"{number}.{name}"
        path.write_bytes(mangle_bytes(rng, raw))
        judged(f"{kind} {number}", path, lambda path=path: load("plain", path))  # type: ignore[misc]


def test_parquet_files(tmp_path: Path) -> None:
    for number in range(PARQUET):
        rng = random.Random(f"parquet {number}")
        rows = [record("comparisons", i) for i in range(RECORDS)]
        name = rng.choice(["prompt", "chosen", "rejected"])
        column: Any = rng.choice([[None] * RECORDS, list(range(RECORDS)), [[b"\xff"]] * RECORDS, ["", "\x00"] * 3])
        table = pa.Table.from_pylist(rows)
        if number % 2:
            table = table.drop_columns([name]) if number % 4 == 1 else table.set_column(0, name, pa.array(column))
        sink = io.BytesIO()
        pq.write_table(table, sink)
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(sink.getvalue() if number % 2 else mangle_bytes(rng, sink.getvalue()))
        judged(f"parquet {number}", path, lambda path=path: load("comparisons", path))  # type: ignore[misc]


def usable(constitution: Constitution) -> None:
    """What loads can be used: no part of it fails later."""
    assert problem(constitution) is None and len(constitution.sha256) == 64
    asked = (Turn("human", "{a} {conversation} why"),)
    for principle in constitution.comparison_principles:
        text = comparison_text(constitution, asked, principle.text, "{b}", "(B)")
        assert "{b}" in text and principle.text in text
    for critique in constitution.critique_principles:
        assert len(critique_turns(asked, "x", critique)) == 3
    lint(constitution)


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)
BAD_YAML = [
    "",
    "just words",
    "- a\n- b",
    "name: 2020-13-45",
    "name: 0x_",
    "a: &a [*a]",
    "a: &a {b: *a}",
    "? [a]\n: b",
    "[" * 3000,
    "{" * 3000,
    "name: " + "9" * 5000,
    "!!python/object/apply:os.system [echo]",
    'name: "\\uD800"',
    BOMB,
    "%YAML 9.9\n---\n",
    "a: 1\n---\nb: 2",
    "<<: *x",
    "name: !!binary /w==",
    "\t- x",
    "version: .nan",
    "1: 2\nnull: 3",
]


@pytest.mark.slow
def test_constitutions_in_yaml(tmp_path: Path) -> None:
    healthy = (Path(load_constitution.__code__.co_filename).parent / "micro.yaml").read_text()
    loaded = 0
    for number in range(YAML):
        rng = random.Random(f"yaml {number}")
        if number < len(BAD_YAML):
            raw = BAD_YAML[number].encode("utf-8", "surrogatepass")
        elif number % 2:
            data = mangle_data(rng, yaml.safe_load(healthy))
            raw = json.dumps(data).encode() if number % 4 == 1 else yaml.safe_dump(data, allow_unicode=False).encode()
        else:
            raw = mangle_bytes(rng, healthy.encode())
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(raw)
        constitution = judged(f"yaml {number}", path, lambda path=path: load_constitution(str(path)))  # type: ignore[misc]
        if constitution is not None:
            loaded += 1
            usable(constitution)
    assert YAML // 20 < loaded < YAML


GONE = b"(no file)"
BAD_JSON = [GONE, b"", b"null", b"[]", b"{}", b'""', b"\xff\xfe", b"[" * 5000, b'[{"prompt": 3}]', b"9" * 5000]


def published() -> dict[str, Any]:
    """Files in the form of those published beside the paper, in other words."""
    talk = "\n\nHuman: hello\n\nAssistant: hi"
    requests = "\n\nCritiqueRequest: what is wrong\n\nCritique: much\n\nRevisionRequest: mend it\n\nRevision: hi there"
    return {
        CRITIQUES: {
            f"harm{i}": {
                "prompt": [f"\n\nCritiqueRequest: what is wrong {i}\n\nCritique:"],
                "edit_request": f"\n\nRevisionRequest: mend it {i}\n\nRevision:",
            }
            for i in range(3)
        },
        CRITIQUE_EXAMPLES: [f"{talk}{requests}\n\nHuman:"] * 2,
        COMPARISONS: [f"Which is better {i}?\n\nOptions:" for i in range(3)],
        COMPARISON_EXAMPLES: [{"prompt": "\n\nHuman: hello", "corrects": ["hi"], "incorrects": ["no"]}] * 2,
        REASONING_EXAMPLES: [{"prompt": "\n\nHuman: {} think\n\nAssistant: so\n\nHuman:"}],
    }


@pytest.mark.slow
def test_constitutions_as_published(tmp_path: Path) -> None:
    loaded = 0
    for number in range(PUBLISHED):
        rng = random.Random(f"published {number}")
        folder = tmp_path / str(number)
        folder.mkdir()
        files = published()
        broken = list(files)[number % len(files)]
        for name, data in files.items():
            raw = as_line(data)
            if name == broken and number < len(BAD_JSON) * len(files):
                raw = BAD_JSON[number // len(files)]
            elif name == broken:
                raw = as_line(mangle_data(rng, data)) if rng.random() < 0.5 else mangle_bytes(rng, raw)
            if raw != GONE:
                (folder / name).write_bytes(raw)
        # the first file is what tells that this is such a folder
        where = folder if (folder / CRITIQUES).exists() else Path(folder.name)
        constitution = judged(f"published {number}", where, lambda folder=folder: load_constitution(str(folder)))  # type: ignore[misc]
        if constitution is not None:
            loaded += 1
            usable(constitution)
    assert PUBLISHED // 20 < loaded < PUBLISHED
