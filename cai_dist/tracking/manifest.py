"""`manifest.json`: how each stage of a run stands, what it read and wrote, with which versions. Always a whole file.

    {"name": …, "date": "YYYY-MM-DD",
     "constitution": sha256, "constitution_of": {"name": …, "version": …, "without": [principle id]},
     "versions": {package: version},
     "stages": {NAME: {"status": "done|running|failed", "seconds": …, "inputs": {path: sha256}, "outputs": [path],
                       "fingerprint": sha256, "started": seconds since 1970, "error": one line, where it failed}}}

Paths are relative to the run folder where they lie inside it.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from cai_dist.errors import DataError
from cai_dist.tracking.atomic import sha256_path, write_json
from cai_dist.tracking.lock import is_held
from cai_dist.tracking.run_folder import RunFolder

PACKAGES = ("cai_dist", "torch", "transformers", "peft", "ray", "deepspeed", "vllm", "safetensors", "pyarrow", "numpy")
MAX_ERROR = 500
_NOTED = ("done", "running", "failed")
State = Literal["done", "running", "failed", "interrupted", "missing"]


class Manifest:
    """Order of calls for a stage: `begin`, then `done` or `failed`; a killed stage stays `running`.

    Reads what is in `run_dir` already. Raises DataError where that file is not a manifest.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._path = RunFolder(run_dir).manifest
        self._data = read_manifest(run_dir) if self._path.exists() else {"stages": {}}
        self._data.setdefault("name", run_dir.resolve().name)
        # One date a run: what depends on the day must not change at midnight or when the run is gone on with.
        self._data.setdefault("date", datetime.now(UTC).date().isoformat())
        self._data["versions"] = versions()

    @property
    def date(self) -> str:
        """The day on which the run was begun, in UTC: YYYY-MM-DD. It never changes."""
        return str(self._data["date"])

    def set_constitution(self, sha256: str, name: str = "", version: str = "", without: Sequence[str] = ()) -> None:
        """Note the constitution of this run: its hash, what it calls itself, and the ids of principles left out."""
        self._data["constitution"] = sha256
        self._data["constitution_of"] = {"name": name, "version": version, "without": list(without)}
        self._write()

    def begin(self, stage: str, fingerprint: str, inputs: Mapping[str, str]) -> None:
        """The stage starts; `fingerprint` stands for all that its result depends on, `inputs` maps path to SHA-256."""
        self._data["stages"][stage] = {
            "status": "running",
            "seconds": 0.0,
            "inputs": {self.shown(path): sha for path, sha in inputs.items()},
            "outputs": [],
            "fingerprint": fingerprint,
            "started": round(time.time(), 3),
        }
        self._write()

    def done(self, stage: str, outputs: Iterable[str | Path], seconds: float) -> None:
        """The stage is finished; `outputs` are the files and folders it wrote. Raises KeyError before `begin`."""
        entry = self._data["stages"][stage]
        entry.update(status="done", seconds=round(seconds, 3), outputs=[self.shown(path) for path in outputs])
        entry.pop("error", None)
        self._write()

    def failed(self, stage: str, error: str) -> None:
        """The stage ended with an error, kept as one line. Raises KeyError before `begin`."""
        entry = self._data["stages"][stage]
        seconds = round(max(0.0, time.time() - entry["started"]), 3)
        entry.update(status="failed", seconds=seconds, error=" ".join(error.split())[:MAX_ERROR])
        self._write()

    def is_done(self, stage: str, fingerprint: str) -> bool:
        """Whether the stage is finished with this fingerprint and everything that it wrote is still there."""
        entry = self._data["stages"].get(stage)
        return (
            entry is not None
            and entry["status"] == "done"
            and entry.get("fingerprint") == fingerprint
            and not _gone(self._run_dir, entry)
        )

    def fingerprint(self, stage: str) -> str | None:
        """The fingerprint that the stage was last begun with; None where it never was."""
        entry = self._data["stages"].get(stage)
        return None if entry is None else entry.get("fingerprint")

    def outputs(self, stage: str) -> list[Path]:
        """What a finished stage has written; empty for another one."""
        entry = self._data["stages"].get(stage, {})
        return [self._run_dir / path for path in entry.get("outputs", [])]

    def hashes(self, paths: Iterable[Path]) -> dict[str, str]:
        """`inputs` for `begin`: path (relative where inside the run folder) to SHA-256. Raises FileNotFoundError."""
        return {self.shown(path): sha256_path(path) for path in paths}

    def shown(self, path: str | Path) -> str:
        """`path` relative to the run folder where it lies inside, else as given."""
        given = Path(path)
        if given.is_absolute():
            absolute = given
        elif (Path.cwd() / given).resolve().is_relative_to(self._run_dir.resolve()):
            absolute = Path.cwd() / given
        else:
            return given.as_posix()
        try:
            return absolute.resolve().relative_to(self._run_dir.resolve()).as_posix()
        except ValueError:
            return given.as_posix()

    def _write(self) -> None:
        write_json(self._path, self._data)


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """The manifest of a run folder. Raises DataError where there is none or it is malformed."""
    path = RunFolder(run_dir).manifest
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; is {run_dir} the folder of a run?") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable manifest ({error}); move the run folder aside") from None
    stages = data.get("stages") if isinstance(data, dict) else None
    fields: dict[str, type | tuple[type, ...]] = {
        "status": str,
        "inputs": dict,
        "outputs": list,
        "seconds": (int, float),
    }
    if not isinstance(stages, dict) or not all(
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), kind) for name, kind in fields.items())
        and entry["status"] in _NOTED
        for entry in stages.values()
    ):
        raise DataError(f'{path}: not a manifest ("stages" is missing or malformed); move the run folder aside')
    return dict(data)


@dataclass(frozen=True)
class Standing:
    """How a stage stands now; `why` is one line, empty where there is nothing to say."""

    state: State
    why: str = ""


def standings(run_dir: Path, manifest: Mapping[str, Any]) -> dict[str, Standing]:
    """Each stage as it is, which may be other than as it was noted: `running` where nobody works in the folder (or only
    on a stage begun later) is `interrupted`; `done` where an output is not there any more is `missing`."""
    stages: Mapping[str, Mapping[str, Any]] = manifest["stages"]
    running = [name for name, entry in stages.items() if entry["status"] == "running"]
    newest = max(running, key=lambda name: stages[name].get("started", 0.0), default=None)
    alive = newest if newest is not None and is_held(run_dir) else None
    return {name: _standing(run_dir, entry, name == alive) for name, entry in stages.items()}


def _standing(run_dir: Path, entry: Mapping[str, Any], alive: bool) -> Standing:
    if entry["status"] == "running":
        return Standing("running") if alive else Standing("interrupted", "the same command goes on")
    if entry["status"] == "failed":
        return Standing("failed", str(entry.get("error", "")))
    gone = _gone(run_dir, entry)
    if gone:
        return Standing("missing", f"{', '.join(gone)}: not there any more; the same command makes it again")
    return Standing("done")


def _gone(run_dir: Path, entry: Mapping[str, Any]) -> list[str]:
    """Outputs of a stage that do not exist any more."""
    return [str(path) for path in entry["outputs"] if not (run_dir / path).exists()]


def constitution_of(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """What the run's constitution calls itself ("default, version 1, without harm") and its hash; empty where the
    manifest does not say."""
    of = manifest.get("constitution_of")
    details = of if isinstance(of, dict) else {}
    without = details.get("without") or []
    parts = [
        str(details.get("name", "")),
        f"version {details['version']}" if details.get("version") else "",
        f"without {', '.join(map(str, without))}" if isinstance(without, list) and without else "",
    ]
    return ", ".join(part for part in parts if part), str(manifest.get("constitution", ""))


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that shape a result; nothing is imported."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
