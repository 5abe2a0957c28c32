"""A run context on a temporary folder, and a group of workers that answers from a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.run import RunConfig, TrackingConfig
from cai_dist.constitution import load_constitution
from cai_dist.stages.context import RunContext
from cai_dist.tracking.console import Console
from cai_dist.tracking.manifest import Manifest
from cai_dist.tracking.metrics import Tracker


class FakeGroup:
    """In place of a `WorkQueue`: items one by one; `answer(method, item)` gives each result; calls are counted."""

    def __init__(self, answer: Callable[[str, Any], Any]) -> None:
        self.answer, self.calls = answer, 0

    def map(self, phase: str, method: str, items: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for key, item in items.items():
            self.calls += 1
            yield key, self.answer(method, item)


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[Callable[..., RunContext]]:
    opened = []

    def make(**sections: Any) -> RunContext:
        config = RunConfig(
            name="t", runs_dir=str(tmp_path), constitution="micro", tracking=TrackingConfig(wandb="off"), **sections
        )
        run_dir = tmp_path / "t"
        run_dir.mkdir(exist_ok=True)
        run = RunContext(
            config,
            run_dir,
            Manifest(run_dir),
            Tracker(run_dir, config.tracking, {}),
            Console("quiet"),
            load_constitution("micro"),
            lambda: False,
        )
        opened.append(run)
        return run

    yield make
    for run in opened:
        run.tracker.close()
