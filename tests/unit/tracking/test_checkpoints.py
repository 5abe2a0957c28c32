"""A checkpoint is whole or not there; the newest ones are kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cai_dist.tracking.checkpoints import CheckpointStore


def save(store: CheckpointStore, step: int, text: str = "x") -> None:
    with store.write(step) as folder:
        (folder / "state").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_before_the_first_write(tmp_path):
    assert CheckpointStore(tmp_path / "none").latest() is None
    assert not (tmp_path / "none").exists()


def test_the_newest_is_by_number_and_old_ones_go(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (2, 9, 10):
        save(store, step)
    assert names(tmp_path) == ["step-10", "step-9"]
    assert store.latest() == (10, tmp_path / "step-10")


def test_a_failed_write_changes_nothing(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)
    with pytest.raises(RuntimeError), store.write(2) as folder:
        (folder / "state").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["step-1"]
    assert store.latest() == (1, tmp_path / "step-1")


def test_leftovers_of_a_kill_are_ignored_then_removed(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    (tmp_path / ".step-2.tmp-abc").mkdir()
    (tmp_path / ".step-2.tmp-abc" / "state").write_text("half")
    assert store.latest() == (1, tmp_path / "step-1")
    save(store, 3)
    assert names(tmp_path) == ["step-1", "step-3"]


def test_a_kill_while_replacing_the_same_step_keeps_the_old_one(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1, "old")
    os.rename(tmp_path / "step-1", tmp_path / ".step-1.old")
    latest = store.latest()
    assert latest is not None and latest[0] == 1
    assert (latest[1] / "state").read_text() == "old"


def test_the_same_step_again_replaces_it(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1, "old")
    save(store, 1, "new")
    assert (tmp_path / "step-1" / "state").read_text() == "new"
    assert names(tmp_path) == ["step-1"]


def test_writing_an_earlier_step_does_not_remove_it(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 5)
    save(store, 3)
    assert "step-3" in names(tmp_path)


def test_other_names_are_not_checkpoints(tmp_path):
    (tmp_path / "step-x").mkdir()
    (tmp_path / "step-7").write_text("a file")
    assert CheckpointStore(tmp_path).latest() is None
    shutil.rmtree(tmp_path / "step-x")


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError):
        CheckpointStore(tmp_path, keep=0)
    with pytest.raises(ValueError), CheckpointStore(tmp_path).write(-1):
        pass
