"""Tables are whole or absent, and the same rows are the same bytes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_dist.data import tables
from cai_dist.data.tables import Shards, read_rows, write_rows
from cai_dist.errors import DataError

SCHEMA = pa.schema([("key", pa.string()), ("p", pa.float64()), ("ids", pa.list_(pa.int32()))])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "key": st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20),
            "p": st.one_of(st.none(), st.floats(allow_nan=False)),
            "ids": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
        }
    ),
    max_size=8,
)
ROW = {"key": "a", "p": 0.5, "ids": [1]}


@settings(max_examples=50)
@given(rows=ROWS)
def test_rows_come_back_as_they_were(tmp_path_factory, rows: list[dict]) -> None:
    path = tmp_path_factory.mktemp("t") / "deep" / "table.parquet"
    write_rows(path, rows, SCHEMA)
    assert read_rows(path) == rows
    assert [p.name for p in path.parent.iterdir()] == ["table.parquet"]


@settings(max_examples=25)
@given(rows=ROWS)
def test_same_rows_same_bytes(tmp_path_factory, rows: list[dict]) -> None:
    folder = tmp_path_factory.mktemp("t")
    write_rows(folder / "a.parquet", rows, SCHEMA)
    write_rows(folder / "b.parquet", [dict(reversed(row.items())) for row in rows], SCHEMA)
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()


@pytest.mark.parametrize("row", [{"key": "a", "p": 0.5}, {**ROW, "extra": 1}, {}])
def test_a_row_with_other_columns_is_refused_and_nothing_written(tmp_path: Path, row: dict) -> None:
    with pytest.raises(ValueError, match="row 1"):
        write_rows(tmp_path / "t.parquet", [ROW, row], SCHEMA)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_table(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "t.parquet"
    write_rows(path, [ROW], SCHEMA)
    monkeypatch.setattr("os.replace", _die)
    with pytest.raises(KeyboardInterrupt):
        write_rows(path, [ROW, ROW], SCHEMA)
    assert read_rows(path) == [ROW]


def _die(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a table at all"])
def test_what_is_no_table_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no such table"):
        read_rows(tmp_path / "other.parquet")


def test_shards_know_what_is_missing_and_read_in_order(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "s", "abc")
    assert shards.missing() == [0, 1, 2] and shards.put_aside() is None
    for i in (2, 0):
        shards.write(i, [{**ROW, "key": f"{i}"}], SCHEMA)
    assert Shards(tmp_path / "s", "abc").missing() == [1]
    with pytest.raises(DataError, match="1 of 3 shards are missing"):
        shards.rows()
    shards.write(1, [{**ROW, "key": "1"}, {**ROW, "key": "1b"}], SCHEMA)
    assert [r["key"] for r in shards.rows()] == ["0", "1", "1b", "2"]
    with pytest.raises(IndexError):
        shards.write(3, [], SCHEMA)


def test_half_a_shard_does_not_count(tmp_path: Path, monkeypatch) -> None:
    shards = Shards(tmp_path / "s", ["a"])
    monkeypatch.setattr(tables, "write_bytes", _die)
    with pytest.raises(KeyboardInterrupt):
        shards.write(0, [ROW], SCHEMA)
    assert shards.missing() == [0]


def test_a_shard_that_was_made_from_something_else_is_none_and_is_kept_aside(tmp_path: Path) -> None:
    before = Shards(tmp_path / "s", ["a", "b", "c", "d"])
    for i in range(4):
        before.write(i, [{**ROW, "key": f"old {i}"}], SCHEMA)
    write_rows(tmp_path / "s" / "00001.parquet", [ROW], SCHEMA)  # without a key, as of an earlier version
    (tmp_path / "s" / "00002.parquet").write_bytes(b"torn")
    now = Shards(tmp_path / "s", ["a", "b", "c"])
    assert now.missing() == [1, 2]
    aside = now.put_aside()
    assert aside == tmp_path / "s.old-1"
    assert sorted(p.name for p in aside.iterdir()) == ["00001.parquet", "00002.parquet", "00003.parquet"]
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["00000.parquet"]
    assert read_rows(aside / "00003.parquet")[0]["key"] == "old 3"
    for i in (1, 2):
        now.write(i, [{**ROW, "key": f"new {i}"}], SCHEMA)
    assert [r["key"] for r in now.rows()] == ["old 0", "new 1", "new 2"]
    assert now.put_aside() is None
    swapped = Shards(tmp_path / "s", ["b", "a", "c"])
    assert swapped.missing() == [0, 1] and swapped.put_aside() == tmp_path / "s.old-2"


def test_a_key_leaves_the_columns_as_they_are(tmp_path: Path) -> None:
    noted = SCHEMA.with_metadata({"note": "x"})
    for folder in ("s", "t"):
        Shards(tmp_path / folder, ["k"]).write(0, [ROW], noted)
    assert (tmp_path / "s" / "00000.parquet").read_bytes() == (tmp_path / "t" / "00000.parquet").read_bytes()
    found = pq.read_schema(tmp_path / "s" / "00000.parquet")
    assert found.equals(SCHEMA) and found.metadata[b"note"] == b"x"
