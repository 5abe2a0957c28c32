"""The files that a path stands for: itself, the shards in a folder, a `save_to_disk` folder, or what a pattern
matches."""

from __future__ import annotations

import glob
import json
import re
from pathlib import Path

from cai_dist.errors import DataError

KINDS = ("parquet", "jsonl", "json", "ndjson", "csv", "tsv")
_PACKED = (".gz", ".zst")
_ABOUT = ("dataset_info.json", "dataset_infos.json", "state.json")
"""JSON files of a data set's folder that hold no records."""
_SHARD = re.compile(r"[-_.]?(?:shard[-_.]?)?\d+(?:-of-\d+)?(?:-[0-9a-f]{8,})?$")
"""What tells the shards of one table apart: `train-00000-of-00002`, `part-00001`, `x_3`."""


def kind_of(path: Path) -> str | None:
    """The kind of a file by its name, without its compression; None where it is none that is read."""
    name = path.name.lower()
    for packed in _PACKED:
        name = name.removesuffix(packed)
    return next((kind for kind in KINDS if name.endswith(f".{kind}")), None)


def saved_table(path: Path) -> bool:
    """Whether `path` is a folder that `Dataset.save_to_disk` wrote."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def data_files(given: str, split: str | None = None) -> list[Path]:
    """The files (or the one `save_to_disk` folder) that `given` stands for, in order.

    A folder's files must be the shards of one table; of several splits `split` says which. Raises DataError: nothing is
    there, several splits and none named, several tables, or kinds of files that are not read.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        return _in_folder(path, split)
    if path.exists():
        found = [path]
    elif glob.has_magic(str(path)):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise DataError(f"{path}: no file matches this pattern")
    else:
        raise DataError(f"{path}: no such file")
    if split is not None:
        raise DataError(f"{path}: split={split!r} is for folders and the hub; a file or pattern is read whole")
    for file in found:
        if not file.is_file() or kind_of(file) is None:
            raise DataError(
                f"{file}: unknown kind of file; give .jsonl, .json, .csv, .tsv (also .gz, .zst) or .parquet"
            )
    return found


def _in_folder(path: Path, split: str | None) -> list[Path]:
    if saved_table(path):
        if split is not None:
            raise DataError(f"{path}: split={split!r}: the folder holds one table without splits; leave split out")
        return [path]
    if (path / "dataset_dict.json").is_file():
        return [path / _chosen(path, _splits_of(path), split)]
    tables = _tables_in(path)
    if not tables:
        raise DataError(f"{path}: the folder holds no .parquet, .jsonl, .json, .csv or .tsv file")
    return tables[_chosen(path, sorted(tables), split)]


def _tables_in(path: Path) -> dict[str, list[Path]]:
    """The files of a folder (or of its `data` folder) by what they are shards of."""
    found: dict[str, list[Path]] = {}
    for folder in (path, path / "data"):
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            kind = kind_of(file)
            if not file.is_file() or file.name.startswith(".") or file.name in _ABOUT or kind is None:
                continue
            stem = file.name.lower().split(f".{kind}")[0]
            found.setdefault(_SHARD.sub("", stem) or stem, []).append(file)
        if found:
            break
    return found


def _splits_of(path: Path) -> list[str]:
    try:
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if not all(isinstance(name, str) and Path(name).name == name and saved_table(path / name) for name in splits):
            raise ValueError("a split is missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}/dataset_dict.json: not what save_to_disk writes: {' '.join(str(error).split())}"
        ) from None
    return sorted(splits)


def _chosen(path: Path, names: list[str], split: str | None) -> str:
    if split is None and len(names) == 1:
        return names[0]
    if split in names:
        return split
    shown = ", ".join(names[:8])
    wanted = "holds several tables" if split is None else f"has no split {split!r}"
    raise DataError(f"{path}: the folder {wanted}: {shown}; name one: {{path: {path}, split: {names[0]}}}")
