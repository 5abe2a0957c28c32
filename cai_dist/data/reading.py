"""What reading a data set gave: how many records were used, repeated and left out, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ReadReport:
    """The counts of one reading; records = used + duplicates + the sum of `skipped`."""

    source: str
    """The file, folder, pattern or hub name, as a person would write it."""
    records: int
    duplicates: int
    """Records that say nothing new: all that they give had been read before."""
    skipped: Mapping[str, int]
    """Reason, in words ("the prompt is empty") -> records left out for it."""
    first: Mapping[str, str]
    """Reason -> place (file:line) of the first record left out for it."""

    @property
    def left_out(self) -> int:
        """The number of skipped records, for whatever reason."""
        return sum(self.skipped.values())

    @property
    def used(self) -> int:
        """Records that something was taken from."""
        return self.records - self.duplicates - self.left_out

    def summary(self) -> str:
        """The counts on one line: "red.jsonl: 40 records, 37 used, 2 repeated; 1 skipped: the prompt is empty (…)"."""
        counts = f"{self.source}: {self.records} records, {self.used} used, {self.duplicates} repeated"
        return f"{counts}; {self.why()}" if self.left_out else counts

    def why(self) -> str:
        """The reasons on one line: "30 skipped: the prompt ends with an answer (first: a.jsonl:1)"; "" with none."""
        return "; ".join(f"{n} skipped: {reason} (first: {self.first[reason]})" for reason, n in self.skipped.items())


@dataclass(slots=True)
class ReadCounts:
    """The counts while a data set is being read."""

    source: str
    records: int = 0
    duplicates: int = 0
    _skipped: Counter[str] = field(default_factory=Counter)
    _first: dict[str, str] = field(default_factory=dict)

    def skip(self, reason: str, place: str) -> None:
        """Count a record that is left out for `reason`."""
        self._skipped[reason] += 1
        self._first.setdefault(reason, place)

    def report(self) -> ReadReport:
        """The counts so far."""
        return ReadReport(self.source, self.records, self.duplicates, dict(self._skipped), dict(self._first))


class WithReport:
    """What was made of a data set, with the counts of its reading."""

    __slots__ = ()
    report: ReadReport

    @property
    def records(self) -> int:
        """Records that were read."""
        return self.report.records

    @property
    def duplicates(self) -> int:
        """Records that say nothing new."""
        return self.report.duplicates

    @property
    def skipped(self) -> int:
        """Records left out, for whatever reason."""
        return self.report.left_out
