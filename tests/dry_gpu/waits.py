"""What makes the host wait for the GPU, counted by the line of source that does it."""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from dataclasses import dataclass, field

_OF_INTEREST = ("/cai_dist/", "/transformers/")


@dataclass
class Waits:
    """A wait is a read of a number by the host, or a copy between host and device that is not both pinned and
    `non_blocking`. Counted only between `begin` and `end`."""

    by_line: Counter[str] = field(default_factory=Counter)
    counting: bool = False

    def begin(self) -> None:
        """Count from here on."""
        self.by_line, self.counting = Counter(), True

    def end(self) -> Counter[str]:
        """Count no more; what was counted."""
        self.counting = False
        return self.by_line

    def note(self, what: str) -> None:
        """One wait, of the line of source that runs now."""
        if self.counting:
            self.by_line[f"{what}: {here()}"] += 1


WAITS = Waits()
"""Of this process."""


def here() -> str:
    """The innermost line of the project, or of transformers, that runs now: `file:line code`."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        for root in _OF_INTEREST:
            if root in name:
                line = linecache.getline(name, frame.f_lineno).strip()
                return f"{root[1:]}{name.rsplit(root, 1)[-1]}:{frame.f_lineno} {line}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
