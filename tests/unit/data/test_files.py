"""Which files are read, and how: packed, arrays, tables, shards, folders, patterns, saved data sets, the hub's."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cai_dist.config.data import DataConfig, DataSource, PromptSource
from cai_dist.config.loading.load import build_run
from cai_dist.config.run import RunConfig
from cai_dist.data import rows as rows_module
from cai_dist.data.files import data_files
from cai_dist.data.sources import hub_settings, read_records, source_files
from cai_dist.errors import DataError
from cai_dist.stages import evaluate, prepare

ROWS = [{"prompt": f"question {i}", "n": i} for i in range(7)]


def texts(source: str | DataSource) -> list[str]:
    return [record.data["prompt"] for record in read_records(source)]


def places(source: str | DataSource) -> list[str]:
    return [record.place for record in read_records(source)]


def lines(rows: list[Any] = ROWS) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def zstd(path: Path, raw: bytes) -> None:
    with pa.output_stream(str(path), compression="zstd") as file:
        file.write(raw)


def test_every_kind_of_file_holds_the_same_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines())
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "b.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + lines())
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines()))
    zstd(tmp_path / "a.jsonl.zst", lines())
    zstd(tmp_path / "a.json.zst", json.dumps(ROWS).encode())
    table = "prompt,n\n" + "".join(f"{row['prompt']},{row['n']}\n" for row in ROWS)
    (tmp_path / "a.csv").write_text("\ufeff" + table)
    (tmp_path / "a.tsv").write_text(table.replace(",", "\t"))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table.encode()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert texts(str(path)) == [row["prompt"] for row in ROWS], path.name


def test_places_are_lines_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n[\n {"prompt":\n "a"},\n\n {"prompt": "b"}]\n')
    assert places(str(path)) == [f"{path}:3", f"{path}:6"]
    table = tmp_path / "a.csv"
    table.write_text('prompt,n\n"two\nlines",1\nb,2\n')
    assert places(str(table)) == [f"{table}:2", f"{table}:4"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_an_array_is_read_in_pieces_of_any_size(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": 'with ] and "{", ünd 🪁', "list": [[1], {}]}, {"prompt": "x" * 50}, {"prompt": ""}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, indent=chunk % 2 or None, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr(rows_module, "_CHUNK", chunk)
    assert [record.data for record in read_records(str(path))] == rows


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[{"prompt": "a"}\n {"prompt": "b"}]', ":2: the file begins a JSON array, and here it is broken: a comma"),
        (b'[\n{"prompt": "a"},\n{"prompt": "b"}', ":3: the file begins a JSON array, and here it is broken: a comma"),
        (
            b'[\n{"prompt": "a"},\n{"prompt": "b',
            ":3: the file begins a JSON array, and here it is broken: Unterminated",
        ),
        (
            b'[\n{"prompt": "a"}\n]\nmore',
            ":4: the file begins a JSON array, and here it is broken: something stands after",
        ),
        (b'[\n"just text"\n]', ":2: expected a JSON object, found a text"),
        (b'[\n{"prompt": "\xff"}]', "broken: 'utf-8' codec can't decode"),
        (b"[\n" + b"[" * 100_000, ":2: the file begins a JSON array, and here it is broken: "),
        (b"[", ":1: the file begins a JSON array, and here it is broken: "),
        (b'["a", "b"]\n', ":1: expected a JSON object, found a list"),
    ],
)
def test_a_broken_array_is_one_line(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        texts(str(path))
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("prompt,n\na,1\nb\n", ":3: 1 cells under 2 columns; quote cells"),
        ("prompt,prompt\na,b\n", ":1: the first row must name the columns"),
        (",\na,b\n", ":1: the first row must name the columns"),
        ('prompt\n"a"b\n', ":2: not a table in UTF-8: "),
        ('prompt\n"a\n', "not a table in UTF-8: unexpected end of data"),
    ],
)
def test_a_broken_table_is_one_line(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        texts(str(path))
    assert says in str(caught.value) and str(path) in str(caught.value)


def test_broken_zstandard_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    zstd(path, lines())
    whole = path.read_bytes()
    path.write_bytes(whole + whole)  # as `cat` joins two of them
    assert len(texts(str(path))) == 14
    for content in (whole[:-9], b"no zstandard"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.jsonl\.zst:\d+: broken file: "):
            texts(str(path))


def test_numbers_and_lists_of_a_table_are_read_from_their_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,rating,flag,messages\n42,3,True,"[{""role"": ""user""}]"\n')
    [record] = read_records(str(path))
    assert record.text("prompt") == "42" and record.value("rating") == 3 and record.value("flag") is True
    assert record.value("messages") == [{"role": "user"}]


def shards(folder: Path, name: str, count: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pq.write_table(pa.Table.from_pylist(ROWS[i::count]), folder / f"{name}-{i:05d}-of-{count:05d}.parquet")


def test_shards_of_a_folder_and_of_a_pattern_are_read_in_order(tmp_path: Path) -> None:
    shards(tmp_path / "set" / "data", "train", 3)
    (tmp_path / "set" / "README.md").write_text("card")
    (tmp_path / "set" / "dataset_infos.json").write_text("{}")
    wanted = [row["prompt"] for i in range(3) for row in ROWS[i::3]]
    assert texts(str(tmp_path / "set")) == texts(str(tmp_path / "set" / "data" / "train-*.parquet")) == wanted
    assert [p.name for p in source_files(str(tmp_path / "set"))] == [
        f"train-{i:05d}-of-00003.parquet" for i in range(3)
    ]


def test_splits_of_a_folder_are_never_mixed(tmp_path: Path) -> None:
    shards(tmp_path, "train")
    shards(tmp_path, "test", 1)
    with pytest.raises(DataError, match=r"holds several tables: test, train; name one: \{path: .*, split: test\}"):
        data_files(str(tmp_path))
    assert [p.name[:5] for p in data_files(str(tmp_path), "train")] == ["train"] * 2
    with pytest.raises(DataError, match="has no split 'dev': test, train"):
        data_files(str(tmp_path), "dev")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing.jsonl", "no such file"),
        ("*.parquet", "no file matches this pattern"),
        ("empty", "the folder holds no .parquet"),
        ("notes.txt", "unknown kind of file; give .jsonl"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=says):
        texts(str(tmp_path / name))


def test_a_split_of_one_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines())
    with pytest.raises(DataError, match="split='train' is for folders and the hub"):
        texts(DataSource(path=str(tmp_path / "a.jsonl"), split="train"))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library without a network, and with a cache of the test's own."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_folders_that_save_to_disk_wrote(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    table = Dataset.from_list(ROWS)
    table.save_to_disk(str(tmp_path / "one"), num_shards=2)
    DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(tmp_path / "two"))
    assert texts(str(tmp_path / "one")) == [row["prompt"] for row in ROWS]
    assert source_files(str(tmp_path / "one")) == [tmp_path / "one"]
    with pytest.raises(DataError, match="holds several tables: test, train"):
        texts(str(tmp_path / "two"))
    assert len(texts(DataSource(path=str(tmp_path / "two"), split="train"))) == 7
    (tmp_path / "two" / "dataset_dict.json").write_text('{"splits": ["../one"]}')
    with pytest.raises(DataError, match=r"dataset_dict.json: not what save_to_disk writes"):
        texts(DataSource(path=str(tmp_path / "two"), split="../one"))


@pytest.fixture
def hub_folder(tmp_path: Path, offline: None) -> Path:
    """A data set in the hub's form: two configurations, two splits."""
    folder = tmp_path / "org" / "set"
    for config in ("plain", "other"):
        shards(folder / config, "train")
        shards(folder / config, "test", 1)
    parts = "".join(
        f"- config_name: {c}\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: {c}/{s}-*\n" for s in ("train", "test"))
        for c in ("plain", "other")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{parts}---\n")
    return folder


def test_a_data_set_of_the_hub_by_name_configuration_split_and_columns(hub_folder: Path) -> None:
    source = DataSource(hub=str(hub_folder), name="plain", split="train", columns={"question": "prompt"})
    found = list(read_records(source))
    assert [r.data["question"] for r in found] == [row["prompt"] for i in range(2) for row in ROWS[i::2]]
    assert found[0].place == f"{hub_folder}:plain[train]:1"
    assert len(texts(DataSource(hub=str(hub_folder), name="plain", split="test"))) == 7


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "plain", "split": "dev"}, 'Unknown split "dev"'),
        ({"name": "none"}, "'none' not found"),
        ({}, "Config name is missing"),
        ({"hub": "org/nobody"}, "org/nobody[train]: the data set cannot be loaded: "),
    ],
)
def test_a_data_set_of_the_hub_that_cannot_be_had_is_one_line(settings: dict, says: str, hub_folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        texts(DataSource(**{"hub": str(hub_folder), **settings}))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_no_code_of_a_data_set_is_run(tmp_path: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(DataError, match="scripts are no longer supported"):
        texts(DataSource(hub=str(folder)))
    assert not (tmp_path / "ran").exists()


def test_the_fingerprint_follows_what_the_hub_holds(hub_folder: Path, tmp_path: Path) -> None:
    """The same name, other rows: another fingerprint. The same rows, cut otherwise: the same."""
    first = hub_settings({"red_team": DataSource(hub=str(hub_folder), name="plain")})
    assert hub_settings({"red_team": "world", "helpful": "a.jsonl"}) == {}
    other = tmp_path / "other"
    rows = [row for i in range(2) for row in ROWS[i::2]]
    for name, changed in (("same", rows), ("changed", [*rows[:-1], {**rows[-1], "prompt": "changed"}])):
        (other / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(changed), other / name / "train.parquet", row_group_size=2)
    same, changed = (hub_settings({"red_team": DataSource(hub=str(other / n))}) for n in ("same", "changed"))
    assert first == same != changed


def test_the_fingerprint_of_a_stage_holds_the_rows_of_the_hub(hub_folder: Path) -> None:
    hub = DataSource(hub=str(hub_folder), name="plain")
    config = RunConfig(name="t", data=DataConfig(red_team=PromptSource(source=hub)))
    assert prepare.settings(config)["hub"] == hub_settings({"red_team": hub})["hub"]
    assert "hub" not in prepare.settings(RunConfig(name="t")) and "hub" not in evaluate.settings(RunConfig(name="t"))
    rated = build_run({"name": "t", "data": {"harm_ratings": {"source": {"hub": str(hub_folder), "name": "plain"}}}})
    assert set(evaluate.settings(rated)["hub"]) == {"harm_ratings"}


def test_the_inputs_of_a_stage_are_the_files_that_are_read(tmp_path: Path) -> None:
    shards(tmp_path / "set", "train")
    (tmp_path / "a.jsonl").write_bytes(lines())
    source = str(tmp_path / "set" / "*.parquet")
    assert source_files(source) == sorted((tmp_path / "set").iterdir())
    assert source_files(DataSource(path=str(tmp_path / "set"), split="train")) == sorted((tmp_path / "set").iterdir())
    assert source_files(str(tmp_path / "a.jsonl")) == [tmp_path / "a.jsonl"]
    os.remove(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="no such file"):
        source_files(str(tmp_path / "a.jsonl"))
