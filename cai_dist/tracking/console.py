"""What a person sees while a run works: live bars on a terminal, a line every few seconds elsewhere, or nothing.

Text may come from models: control characters are made visible and nothing is read as markup. A terminal that goes away
(closed pipe) ends the display, never the run.
"""

from __future__ import annotations

import io
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import IO, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

ConsoleMode = Literal["auto", "rich", "plain", "quiet"]


def clean(text: str) -> str:
    """`text` with control and formatting characters (escape sequences, direction marks) replaced; newline, tab stay."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def duration(seconds: float) -> str:
    """Seconds as `42s`, `3m05s` or `2h07m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


class TaskHandle:
    """One counted piece of work. A context manager: the display of the task ends with it."""

    def __init__(self, console: Console, label: str, total: int, unit: str) -> None:
        self._console, self.label, self.total, self.unit = console, clean(label), total, unit
        self.count = 0
        self.numbers: dict[str, float] = {}
        self.started = self._last = console.clock()
        self._base: tuple[float, int] | None = None
        self.bar: TaskID | None = None

    def advance(self, n: int = 1, **numbers: float) -> None:
        """`n` more are done; `numbers` (a loss, a score) are shown beside the rate."""
        self.count += n
        if self._base is None:
            self._base = (self._console.clock(), self.count)
        self.numbers.update(numbers)
        self._console._advanced(self)

    @property
    def rate(self) -> float:
        """Units a second since the first `advance`, which may stand for work of an earlier start; 0 before the next."""
        if self._base is None:
            return 0.0
        since, before = self._base
        elapsed = self._console.clock() - since
        return (self.count - before) / elapsed if elapsed > 0 else 0.0

    def describe(self) -> str:
        """Count, rate, time left and numbers on one line."""
        parts = [f"{self.count}/{self.total} {self.unit}"]
        if rate := self.rate:
            parts.append(f"{rate:.3g} {self.unit}/s")
            if self.count < self.total:
                parts.append(f"ETA {duration((self.total - self.count) / rate)}")
        parts += [f"{clean(name)} {value:.4g}" for name, value in self.numbers.items()]
        return "  ".join(parts)

    def due(self, interval: float) -> bool:
        """Whether a plain line is due now: the interval has passed, or the task is complete."""
        now = self._console.clock()
        if now - self._last < interval and self.count < self.total:
            return False
        self._last = now
        return True

    def close(self) -> None:
        """End the display of this task."""
        self._console._closed(self)

    def __enter__(self) -> TaskHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Numbers(ProgressColumn):
    """The task's own description: its rate leaves out what an earlier start had done."""

    def __init__(self, handles: dict[TaskID, TaskHandle]) -> None:
        super().__init__()
        self._handles = handles

    def render(self, task: Task) -> Text:
        handle = self._handles.get(task.id)
        return Text(handle.describe() if handle else "")


class _Screen(RichConsole):
    """A rich console that falls silent when its reader leaves; rich itself would end the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Console:
    """The display of one run. `mode` auto: rich on a terminal, plain elsewhere; quiet shows warnings and tables alone.

    `interval` seconds between plain lines of a task; `clock` a monotonic clock in seconds.
    """

    def __init__(
        self,
        mode: ConsoleMode = "auto",
        stream: IO[str] | None = None,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stdout
        if isinstance(self._stream, io.TextIOWrapper):
            self._stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? and goes on
        self.mode: ConsoleMode = mode if mode != "auto" else ("rich" if self._stream.isatty() else "plain")
        self.clock, self._interval = clock, interval
        self._gone = False
        self._rich = _Screen(
            file=self._stream,
            force_terminal=self.mode == "rich" or None,
            width=None if self._stream.isatty() else 120,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self._stage = ""
        self._handles: dict[TaskID, TaskHandle] = {}
        self._progress: Progress | None = None

    def stage(self, name: str) -> None:
        """Everything from here on belongs to stage `name`."""
        self._stage = clean(name)
        if self.mode == "rich":
            self._guard(lambda: self._rich.rule(Text(self._stage, style="bold"), align="left"))
        elif self.mode == "plain":
            self._line(f"stage {self._stage}")

    def task(self, label: str, total: int, unit: str = "steps") -> TaskHandle:
        """Start a piece of work of `total` units. Use the handle as a context manager."""
        handle = TaskHandle(self, label, total, unit)
        if self.mode == "rich":
            self._guard(lambda: self._add_bar(handle))
        return handle

    def say(self, text: str) -> None:
        """One message."""
        if self.mode != "quiet":
            self._line(clean(text))

    def warn(self, text: str) -> None:
        """One warning; shown in every mode."""
        self._line(f"warning: {clean(text)}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text: bool = False) -> None:
        """A result; shown in every mode. Every row has one text for each column: numbers, set to the right but for the
        first; with `text` sentences, set to the left, with a rule between rows."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_lines=text)
        for index, name in enumerate(columns):
            justify: Literal["left", "right"] = "left" if text or index == 0 else "right"
            table.add_column(Text(clean(name)), justify=justify, overflow="fold")
        for row in rows:
            table.add_row(*(Text(clean(cell)) for cell in row))
        # The title as a line of its own: rich would fold it to the width of the table.
        self._guard(lambda: self._rich.print(Text(clean(title), style="bold"), table, sep="\n"))

    def close(self) -> None:
        """End the live display. May be called twice."""
        if self._progress is not None:
            progress, self._progress = self._progress, None
            self._handles.clear()
            self._guard(progress.stop)

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add_bar(self, handle: TaskHandle) -> None:
        if self._progress is None:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                _Numbers(self._handles),
                console=self._rich,
                transient=True,
                refresh_per_second=4,
            )
            self._progress.start()
        handle.bar = self._progress.add_task(self._title(handle), total=handle.total)
        self._handles[handle.bar] = handle

    def _advanced(self, handle: TaskHandle) -> None:
        if self.mode == "plain" and handle.due(self._interval):
            self._line(f"{self._title(handle)}: {handle.describe()}")
        elif self._progress is not None and handle.bar is not None:
            self._progress.update(handle.bar, completed=handle.count)

    def _closed(self, handle: TaskHandle) -> None:
        if self._progress is None or handle.bar is None or handle.bar not in self._handles:
            return
        del self._handles[handle.bar]
        self._progress.remove_task(handle.bar)
        handle.bar = None
        if not self._handles:
            self.close()
        took = duration(self.clock() - handle.started)
        self._line(f"{self._title(handle)}: {handle.describe()}  in {took}")

    def _title(self, handle: TaskHandle) -> str:
        return handle.label if handle.label == self._stage or not self._stage else f"{self._stage}: {handle.label}"

    def _line(self, text: str) -> None:
        # soft_wrap: a terminal may fold a long line, a log file keeps it whole
        self._guard(lambda: self._rich.print(Text(text), soft_wrap=True))

    def _guard(self, show: Callable[[], object]) -> None:
        if self._gone:
            return
        try:
            show()
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream is closed
            self._gone = True
