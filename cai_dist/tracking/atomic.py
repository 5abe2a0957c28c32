"""Files and folders that are either whole or not there: written aside, flushed to disk, renamed; and their hashes.

Names of temporaries start with a dot and end with `.tmp-…`; a folder that is being replaced waits as `.NAME.old` for
the moment between two renames, and `recover_dir` puts it back if the process died in that moment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, making its folder; a reader sees the old content or the new, never a part.

    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _aside(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_dir(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text; lone surrogates (undecodable input) become question marks."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_json(path: Path, obj: Any) -> None:
    """`write_text` of indented JSON. Raises ValueError for NaN and infinities, which JSON does not have."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def staging_dir(final: Path) -> Iterator[Path]:
    """A new, empty folder beside `final` to fill; on success it is flushed and takes the place of `final` (whole, with
    nothing left of an earlier `final`), on any exception it is removed and `final` is as before. Whoever may read
    `final` may read what is in it (`share_alike`)."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _aside(final)
    temporary.mkdir()
    try:
        yield temporary
        share_alike(temporary)
        replace_dir(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def share_alike(folder: Path) -> None:
    """Give every file and folder under `folder` the access that `folder` has from the umask that it was made under.

    Libraries that write through a temporary of their own (safetensors, `tempfile`) leave mode 0600 whatever the umask.
    """
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o777
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(here) / name
            if not path.is_symlink():
                # A file system without modes, or somebody else's file: as it is.
                with contextlib.suppress(OSError):
                    path.chmod(mode if name in folders else mode & 0o666)


def replace_dir(temporary: Path, final: Path) -> None:
    """Flush the folder `temporary` and rename it to `final`, replacing what is there. Raises OSError."""
    sync_tree(temporary)
    for attempt in range(10):
        recover_dir(final)
        old = final.parent / f".{final.name}.old"
        try:
            if final.exists():
                os.rename(final, old)
            os.rename(temporary, final)
        except OSError:
            # Another process put its folder here between the two calls (a shared cache): go around again.
            if attempt == 9 or not (final.exists() and temporary.exists()):
                recover_dir(final)
                raise
            continue
        shutil.rmtree(old, ignore_errors=True)
        sync_dir(final.parent)
        return


def recover_dir(final: Path) -> None:
    """Finish a replacement that was cut off: put the old folder back where no new one came, else remove it."""
    old = final.parent / f".{final.name}.old"
    if not old.exists():
        return
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.rename(old, final)


def remove_leftovers(final: Path) -> None:
    """Remove temporaries of `final` that killed processes left. Only for the one process that writes `final`."""
    for path in final.parent.glob(f".{glob_escape(final.name)}.tmp-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def glob_escape(name: str) -> str:
    """`name` with the characters that `Path.glob` treats as patterns made literal."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def sync_dir(folder: Path) -> None:
    """Flush the entries of a folder to disk, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder under `folder` to disk. Raises OSError where a file's data cannot be written."""
    for here, _, names in os.walk(folder):
        for name in names:
            path = Path(here) / name
            if path.is_symlink():
                continue
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_dir(Path(here))


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_tree(folder: Path) -> str:
    """Hex SHA-256 of a folder: the relative names (sorted, with `/`) and contents of its files.

    Empty folders, times and modes do not count.
    """
    digest = hashlib.sha256()
    files = [path for path in folder.rglob("*") if path.is_file()]
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in files):
        # A digest has a fixed length and a NUL cannot stand in a name: no two trees feed the same bytes.
        digest.update(name.encode("utf-8", errors="surrogateescape") + b"\0" + bytes.fromhex(sha256_file(path)))
    return digest.hexdigest()


def sha256_path(path: Path) -> str:
    """`sha256_tree` of a folder or `sha256_file` of a file. Raises FileNotFoundError."""
    return sha256_tree(path) if path.is_dir() else sha256_file(path)


def sha256_json(obj: Any) -> str:
    """Hex SHA-256 of a JSON value, whatever the order of its keys.

    Raises ValueError for NaN, TypeError for what JSON does not have.
    """
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _aside(path: Path) -> Path:
    return path.parent / f".{path.name}.tmp-{uuid.uuid4().hex[:12]}"
