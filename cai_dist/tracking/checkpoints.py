"""Checkpoints of one trained job: folders `step-N`, each whole or not there."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from cai_dist.tracking.atomic import recover_dir, remove_leftovers, staging_dir

_STEP = re.compile(r"step-(\d+)")
_ASIDE = re.compile(r"\.(step-\d+)\.(?:tmp-.*|old)")


class CheckpointStore:
    """The newest `keep` checkpoints in `folder`, which the first write makes. One process writes at a time."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep}: must be at least 1")
        self._folder, self._keep = folder, keep

    @contextlib.contextmanager
    def write(self, step: int) -> Iterator[Path]:
        """A new folder to fill with the state after `step`; flushed and named `step-N` on success, removed on failure.

        Older checkpoints go only once the new one stands. Raises ValueError for a negative step, OSError.
        """
        if step < 0:
            raise ValueError(f"step={step}: must not be negative")
        self._clean()
        with staging_dir(self._folder / f"step-{step}") as temporary:
            yield temporary
        for old, path in self._steps()[: -self._keep]:
            if old != step:
                shutil.rmtree(path, ignore_errors=True)

    def latest(self) -> tuple[int, Path] | None:
        """Step and folder of the newest whole checkpoint; None where there is none."""
        steps = self._steps()
        return steps[-1] if steps else None

    def _steps(self) -> list[tuple[int, Path]]:
        """All whole checkpoints, oldest first."""
        if not self._folder.is_dir():
            return []
        for path in list(self._folder.iterdir()):
            if (match := _ASIDE.fullmatch(path.name)) and path.name.endswith(".old"):
                recover_dir(self._folder / match[1])
        found = [(int(m[1]), path) for path in self._folder.iterdir() if (m := _STEP.fullmatch(path.name))]
        return sorted((step, path) for step, path in found if path.is_dir())

    def _clean(self) -> None:
        """Remove what killed writes left."""
        if self._folder.is_dir():
            names = {m[1] for path in self._folder.iterdir() if (m := _ASIDE.fullmatch(path.name))}
            for name in names:
                recover_dir(self._folder / name)
                remove_leftovers(self._folder / name)
