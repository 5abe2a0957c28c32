"""Answers of an earlier evaluation that a new one may take over.

An evaluation begins anew when anything changes that decides its result, a file of multiple-choice questions that was
mended as well as a model. What the models said is costly and depends on less: it is kept with the hash of all that it
was made from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from cai_dist.stages.context import RunContext
from cai_dist.tracking.atomic import sha256_json, sha256_path, staging_dir, write_json


def reuse_from(ctx: RunContext, folder: Path, name: str, provenance: Mapping[str, Any]) -> None:
    """Copy the shards `name` (and `name-…`) into `folder` from the latest earlier one (`FOLDER.old-N`) whose shards
    were made from the same; whole or not, they are gone on with. `provenance` is all that decides them, as JSON."""
    key, mark = sha256_json(provenance), f"{name}.made-from.json"
    if (folder / mark).exists():
        return
    for old in _earlier(folder):
        if _key(old / mark) != key:
            continue
        found = [p for p in sorted(old.iterdir()) if p.is_dir() and (p.name == name or p.name.startswith(f"{name}-"))]
        for part in (p for p in found if not (folder / p.name).exists()):
            with staging_dir(folder / part.name) as temporary:
                shutil.copytree(part, temporary, dirs_exist_ok=True)
        if found:
            ctx.console.say(f"{folder.name}: {name} comes from {old.name}, where it was made from the same")
        break
    write_json(folder / mark, {"sha256": key})


def model_hash(model: str) -> str:
    """Content hash of a local model; a hub name stands for itself. Files whose size and time of change are the same as
    before are not read again: each phase of each stage asks."""
    folder = Path(model)
    if not folder.is_dir():
        return f"hub:{model}"
    files = [(p, p.stat()) for p in sorted(folder.rglob("*")) if p.is_file()]
    return _folder_hash(folder, tuple((str(p), stat.st_size, stat.st_mtime_ns) for p, stat in files))


@lru_cache(maxsize=64)
def _folder_hash(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    return sha256_path(folder)


def _earlier(folder: Path) -> list[Path]:
    """The folders that were set aside, latest first."""
    numbered = {p: p.name.rpartition("-")[2] for p in folder.parent.glob(f"{folder.name}.old-*")}
    return sorted((p for p, n in numbered.items() if n.isdigit()), key=lambda p: int(numbered[p]), reverse=True)


def _key(mark: Path) -> str | None:
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("sha256") if isinstance(found, dict) else None
