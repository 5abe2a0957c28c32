"""Ray that does not come up in time on a busy machine is started again, and then given up in a line."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from cai_dist.cluster import runtime
from cai_dist.errors import WorkerTimeout

LATE = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


def start(monkeypatch: pytest.MonkeyPatch, *outcomes: str) -> int:
    """Number of starts; an outcome that is no empty text is what Ray raises."""
    calls: list[dict[str, Any]] = []

    def init(**settings: Any) -> None:
        calls.append(settings)
        if outcome := outcomes[len(calls) - 1]:
            raise Exception(outcome)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    try:
        runtime._init(num_cpus=3)
    finally:
        assert all(settings == {"address": "local", "num_cpus": 3} for settings in calls)
        start.calls = len(calls)  # type: ignore[attr-defined]
    return len(calls)


def test_a_start_that_took_too_long_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(monkeypatch, "") == 1
    assert start(monkeypatch, LATE, LATE, "") == 3


def test_three_late_starts_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkerTimeout, match=r"Ray did not come up in 3 tries of 30 s; the machine is too busy"):
        start(monkeypatch, LATE, LATE, LATE)


def test_what_else_goes_wrong_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="^no such option$"):
        start(monkeypatch, "no such option")
    assert start.calls == 1  # type: ignore[attr-defined]
