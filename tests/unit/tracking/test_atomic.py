"""Files and folders are whole or not there, however a writer ends."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cai_dist.tracking import atomic
from cai_dist.tracking.atomic import (
    replace_dir,
    sha256_file,
    sha256_json,
    sha256_path,
    sha256_tree,
    staging_dir,
    write_bytes,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_content_and_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_writes_make_folders_and_replace(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json(path, {"x": [1, "é"]})
    write_json(path, {"x": 2})
    assert path.read_text() == '{\n  "x": 2\n}\n'
    write_bytes(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    write_text(path, "a\udc80b")  # undecodable bytes of a file name or an argument
    assert path.read_text() == "a?b"


def test_json_with_nan_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert names(tmp_path) == []


def test_staging_appears_whole_and_replaces_all_of_the_old(tmp_path):
    final = tmp_path / "model"
    for generation in ("one", "two"):
        with staging_dir(final) as temporary:
            assert temporary.parent == tmp_path
            (temporary / f"{generation}.txt").write_text(generation)
            assert not (final / f"{generation}.txt").exists()
    assert names(final) == ["two.txt"]
    assert names(tmp_path) == ["model"]


def test_a_failure_while_staging_leaves_the_old_folder(tmp_path):
    final = tmp_path / "model"
    with staging_dir(final) as temporary:
        (temporary / "a").write_text("1")
    with pytest.raises(KeyboardInterrupt), staging_dir(final) as temporary:
        (temporary / "a").write_text("2")
        raise KeyboardInterrupt
    assert (final / "a").read_text() == "1"
    assert names(tmp_path) == ["model"]


def test_a_death_between_the_two_renames_is_mended(tmp_path, monkeypatch):
    final, temporary = tmp_path / "model", tmp_path / "fresh"
    for folder, text in ((final, "old"), (temporary, "new")):
        folder.mkdir()
        (folder / "a").write_text(text)
    rename, calls = os.rename, []

    def dies_at_the_second(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise SystemExit  # as a kill would: no handler of OSError runs
        rename(source, target)

    monkeypatch.setattr(os, "rename", dies_at_the_second)
    with pytest.raises(SystemExit):
        replace_dir(temporary, final)
    assert not final.exists()
    monkeypatch.undo()
    atomic.recover_dir(final)
    assert (final / "a").read_text() == "old"
    replace_dir(temporary, final)
    assert (final / "a").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_a_writer_killed_in_the_middle_leaves_the_old_folder(tmp_path):
    """A real process, really killed, between its first and its second file."""
    final = tmp_path / "model"
    with staging_dir(final) as temporary:
        (temporary / "a").write_text("old")
    program = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from cai_dist.tracking.atomic import staging_dir
        with staging_dir(Path({str(final)!r})) as temporary:
            (temporary / "a").write_text("new")
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    ended = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (final / "a").read_text() == "old"
    [left] = [path for path in tmp_path.iterdir() if path != final]
    assert left.name.startswith(".model.tmp-")
    atomic.remove_leftovers(final)
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_decides_who_may_read_what_libraries_write(tmp_path, umask):
    """safetensors, `mkstemp` and `mkdtemp` leave files of their own with 0600 and folders with 0700."""
    before = os.umask(umask)
    try:
        with staging_dir(tmp_path / "model") as folder:
            save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
            write_json(folder / "config.json", {})
            inner = Path(tempfile.mkdtemp(dir=folder))
            os.close(tempfile.mkstemp(dir=inner)[0])
            (folder / "link").symlink_to(outside := tmp_path / "outside")
            outside.touch(mode=0o600)
    finally:
        os.umask(before)
    found = [tmp_path / "model", *(path for path in (tmp_path / "model").rglob("*") if not path.is_symlink())]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in found}
    assert len(modes) == 5 and modes.keys() > {"model", "model.safetensors", "config.json"}
    assert modes == {path.name: (0o777 if path.is_dir() else 0o666) & ~umask for path in found}
    assert stat.S_IMODE(outside.stat().st_mode) == 0o600, "what a link leads to is not ours"


def test_leftovers_of_other_names_stay(tmp_path):
    for name in (".a.tmp-1", ".ab.tmp-1", ".[a].tmp-1"):
        (tmp_path / name).mkdir()
    atomic.remove_leftovers(tmp_path / "[a]")
    assert names(tmp_path) == [".a.tmp-1", ".ab.tmp-1"]


def test_hash_of_a_file_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest() == sha256_path(tmp_path / "a")


def test_hash_of_a_folder_depends_on_names_and_contents_alone(tmp_path):
    def build(name: str, files: list[tuple[str, str]]) -> str:
        folder = tmp_path / name
        for inside, text in files:
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            (folder / inside).write_text(text)
        return sha256_tree(folder)

    first = build("one", [("a", "1"), ("b/c", "2")])
    assert build("two", [("b/c", "2"), ("a", "1")]) == first
    (tmp_path / "two" / "empty").mkdir()
    assert sha256_path(tmp_path / "two") == first
    others = [[("a", "1"), ("b/c", "3")], [("a", "1"), ("b/d", "2")], [("a", "1")], [("a", "12"), ("b/c", "")]]
    assert len({first, *(build(f"other{i}", files) for i, files in enumerate(others))}) == 5


def test_hash_of_json_ignores_the_order_of_keys():
    assert sha256_json({"a": 1, "b": [1, 2]}) == sha256_json({"b": [1, 2], "a": 1})
    assert sha256_json({"b": [2, 1], "a": 1}) != sha256_json({"b": [1, 2], "a": 1})
    with pytest.raises(ValueError):
        sha256_json({"a": float("inf")})
