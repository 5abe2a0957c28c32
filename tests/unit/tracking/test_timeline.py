"""The timeline is valid JSON after every write, survives a torn one, and goes back with the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai_dist.tracking.timeline import ROLES, Timeline
from cai_dist.types import Span


def spans(iteration: int, count: int = 2) -> list[Span]:
    return [
        Span("policy", rank, f"update {iteration}", 1000.0 + iteration, 1000.5 + iteration) for rank in range(count)
    ]


def events(path: Path) -> list[dict]:
    return [event for event in json.loads(path.read_text()) if event["ph"] == "X"]


def test_events_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timeline = Timeline(path, 0)
    assert events(path) == []
    timeline.add(1, [Span("reward", 1, "scores", 1.25, 1.75)])
    assert events(path) == [
        {"ph": "X", "name": "scores", "pid": 5, "tid": 1, "ts": 1250000, "dur": 500000, "args": {"iteration": 1}}
    ]
    names = [event for event in json.loads(path.read_text()) if event["ph"] == "M"]
    assert [(event["pid"], event["args"]["name"]) for event in names] == list(enumerate(ROLES))


def test_it_grows_by_what_is_new_and_is_whole_after_every_write(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timeline = Timeline(path, 0)
    sizes = []
    for iteration in range(1, 6):
        timeline.add(iteration, spans(iteration))
        timeline.add(iteration, [])
        assert len(events(path)) == 2 * iteration
        sizes.append(path.stat().st_size)
    assert len({after - before for before, after in zip(sizes, sizes[1:], strict=False)}) == 1


def test_a_resumed_run_drops_what_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timeline = Timeline(path, 0)
    for iteration in (1, 2, 3):
        timeline.add(iteration, spans(iteration))
    Timeline(path, 2).add(3, spans(9))
    assert [event["name"] for event in events(path)] == ["update 1"] * 2 + ["update 2"] * 2 + ["update 9"] * 2
    Timeline(path, 0)
    assert events(path) == []


@pytest.mark.parametrize("cut", range(1, 150, 7))
def test_a_torn_write_costs_its_own_events_only(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timeline = Timeline(path, 0)
    timeline.add(1, spans(1))
    before = path.stat().st_size
    timeline.add(2, spans(2, count=1))
    data = path.read_bytes()
    path.write_bytes(data[: max(before - 3, len(data) - cut)])
    Timeline(path, 2)
    names = [event["name"] for event in events(path)]
    assert names[:2] == ["update 1"] * 2 and names[2:] in ([], ["update 2"])


def test_its_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timeline = Timeline(path, 0, max_bytes=4000)
    for iteration in range(1, 200):
        timeline.add(iteration, spans(iteration))
        assert path.stat().st_size <= 4000
    kept = [event["args"]["iteration"] for event in events(path)]
    assert kept == sorted(kept) and kept[-2:] == [199, 199] and len(kept) > 5
