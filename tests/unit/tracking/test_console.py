"""The display: plain lines at a pace, escaped text, and no run that dies of a closed terminal."""

from __future__ import annotations

import io

import pytest

from cai_dist.tracking.console import Console, clean, duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_plain_lines_come_at_the_interval_and_at_the_end():
    stream, clock = io.StringIO(), Clock()
    with Console("plain", stream, interval=5.0, clock=clock) as console:
        console.stage("sft")
        with console.task("training", total=10, unit="steps") as task:
            for _ in range(10):
                clock.now += 2.0
                task.advance(1, loss=0.25)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "stage sft"
    # 2 s a step: due at 6, 12, 18 and at the last step (20 s); the rate counts from the first step on.
    assert lines[1] == "sft: training: 3/10 steps  0.5 steps/s  ETA 14s  loss 0.25"
    assert [line.split()[2] for line in lines[1:]] == ["3/10", "6/10", "9/10", "10/10"]
    assert "ETA" not in lines[-1]


def test_work_of_an_earlier_start_is_no_speed():
    clock = Clock()
    task = Console("plain", io.StringIO(), clock=clock).task("x", total=100)
    task.advance(80)
    clock.now += 10
    task.advance(5)
    assert task.rate == pytest.approx(0.5)
    assert "ETA 30s" in task.describe()


def test_markup_and_escape_sequences_of_models_are_text():
    for mode in ("plain", "rich"):
        stream = Terminal()
        with Console(mode, stream) as console:
            console.say("[bold]x[/bold] \x1b]0;owned\x07 [/nothing]")
            console.table("t [red]", ["a", "[b]"], [["[link=x]y[/link]", "\x1b[2J"]])
        shown = stream.getvalue()
        assert "[bold]x[/bold]" in shown and "[/nothing]" in shown
        assert "[link=x]y[/link]" in shown and "t [red]" in shown
        assert "\x1b]0;" not in shown and "\x1b[2J" not in shown and "\x07" not in shown


def test_clean_keeps_lines_and_letters():
    assert clean("a\tb\né 漢") == "a\tb\né 漢"
    assert clean("a\x1b[31m\x00\u202e") == "a\ufffd[31m\ufffd\ufffd"


def test_quiet_shows_warnings_and_tables_alone():
    stream = io.StringIO()
    with Console("quiet", stream) as console:
        console.stage("sft")
        console.say("hello")
        with console.task("x", total=1) as task:
            task.advance()
        assert stream.getvalue() == ""
        console.warn("careful")
        console.table("result", ["a"], [["1"]])
    assert "careful" in stream.getvalue() and "result" in stream.getvalue()


def test_auto_takes_bars_on_a_terminal_alone():
    assert Console("auto", Terminal()).mode == "rich"
    assert Console("auto", io.StringIO()).mode == "plain"


def test_rich_tasks_end_with_a_line_and_several_can_run():
    stream = Terminal()
    with Console("rich", stream) as console:
        with console.task("one", total=2, unit="prompts") as one, console.task("two", total=1) as two:
            one.advance(2, loss=1.5)
            two.advance()
        console.say("after")
    assert "one: 2/2 prompts" in stream.getvalue() and "loss 1.5" in stream.getvalue()
    assert "after" in stream.getvalue()


@pytest.mark.parametrize("mode", ["plain", "rich", "quiet"])
def test_a_closed_pipe_ends_the_display_and_not_the_run(mode):
    with Console(mode, Broken()) as console:
        console.stage("sft")
        console.say("x")
        with console.task("t", total=2) as task:
            task.advance(2)
        console.table("t", ["a"], [["1"]])
        console.warn("x")


def test_a_terminal_without_unicode_shows_question_marks():
    raw = io.BytesIO()
    with Console("plain", io.TextIOWrapper(raw, encoding="ascii")) as console:
        console.say("a – b")
        console.table("t", ["é"], [["1–2"]])
    assert b"a ? b" in raw.getvalue() and b"1?2" in raw.getvalue()


def test_a_long_line_stays_one_line_in_a_log():
    stream = io.StringIO()
    Console("plain", stream).say("word " * 100)
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (7620, "2h07m")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
