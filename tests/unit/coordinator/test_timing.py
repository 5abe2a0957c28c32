"""Idle shares by hand, and what an iteration hands on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cai_dist.coordinator.loop import train
from cai_dist.coordinator.timing import idle_shares
from cai_dist.tracking.checkpoints import CheckpointStore
from cai_dist.types import Span
from tests.fakes import FakeRoles
from tests.unit.coordinator.small_run import STOP, Run, make_config, make_prompts


def span(role: str, rank: int, start: float, end: float) -> Span:
    return Span(role, rank, "work", start, end)


def test_idle_shares_by_hand() -> None:
    # Of 10 to 20: policy 0 works 11-13, 12-15 and 15-16 (5 of 10), policy 1 all of it and beyond (10); value 2 of 10.
    spans = [
        span("policy", 0, 12, 15), span("policy", 0, 11, 13), span("policy", 0, 15, 16), span("policy", 1, 5, 25),
        span("value", 0, 8, 11), span("value", 0, 19, 30), span("reward", 0, 1, 2),
    ]  # fmt: skip
    assert idle_shares(spans, 10, 20) == pytest.approx({"idle_policy": 0.25, "idle_value": 0.8, "idle_reward": 1.0})
    assert idle_shares(spans, 20, 20) == {} == idle_shares([], 10, 20)


def test_each_iteration_hands_on_what_workers_and_driver_did_since_the_last(run: Run) -> None:
    class Busy(FakeRoles):
        def spans(self) -> list[Span]:
            return [span("policy", 0, 0.0, 1.0)]

    seen: list[tuple[int, Sequence[Span]]] = []
    roles, config = Busy(), make_config(iterations=2)
    roles.config = config
    train(
        roles, make_prompts(7, 3), config, seed=3, stop_ids=(STOP,),
        checkpoints=CheckpointStore(run.folder), log=run.record.log, should_stop=lambda: False,
        on_spans=lambda iteration, spans: seen.append((iteration, spans)),
    )  # fmt: skip
    driver = ["rollout", "update", "transfer"]
    names = [(iteration, [(s.role, s.name) for s in spans]) for iteration, spans in seen]
    policy = [("policy", "work")]
    assert names == [
        (1, [("coordinator", name) for name in ["transfer", *driver]] + policy),
        (2, [("coordinator", name) for name in ["checkpoint", *driver]] + policy),
        (2, [("coordinator", "checkpoint"), *policy]),
    ]
    assert all(s.start <= s.end for _, spans in seen for s in spans)
    assert run.record.metrics[2]["idle_policy"] == 1.0, "that was long ago"
