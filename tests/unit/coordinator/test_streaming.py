"""Streaming: samples are scored while others are generated, and the numbers are the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_dist.config.ppo import PpoConfig
from cai_dist.coordinator.score_requests import chunk_size
from cai_dist.coordinator.state import PpoState
from cai_dist.errors import CaiError
from cai_dist.types import SampleRef, SamplingParams
from tests.fakes import FakeParts, FakePending, FakeRoles, collect
from tests.ids import response_of
from tests.unit.coordinator.small_run import STOP, make_config, make_prompts


def streaming_config(**changes: object) -> PpoConfig:
    """Requests of two prompts; chunks of four samples: two ranks with micro-batches of two."""
    return make_config(rollout_batch=2, samples_per_prompt=2, prompts_per_iteration=5, mini_batch=5, **changes)


@settings(max_examples=30)
@given(st.permutations(range(5)), st.sampled_from(["ppo", "grpo"]))
def test_streamed_numbers_do_not_depend_on_the_order_of_completion(order: list[int], algorithm: str) -> None:
    config = streaming_config(algorithm=algorithm, value_warmup=0)
    assert chunk_size(config) == 4

    def collected(streams: bool) -> tuple[object, list[tuple[str, tuple[object, ...]]]]:
        asked: list[tuple[str, tuple[object, ...]]] = []

        class Spy(FakeRoles):
            def scores(self, samples: list[SampleRef]) -> FakePending[list[float]]:
                asked.append(("scores", tuple(response_of(s) for s in self.fetch([sample.row for sample in samples]))))
                return super().scores(samples)

        roles = Spy()
        roles.rows, roles.shuffle = 2, lambda starts: [starts[i] for i in order]
        roles.sync_weights(0)
        chosen = config.model_copy(update={"stream": streams})
        rollout = collect(roles, make_prompts(7, 3), chosen, (STOP,), PpoState.start(config), 3)
        return rollout.trajectories[:], asked

    streamed, chunks = collected(True)
    plain, whole = collected(False)
    assert streamed == plain
    assert [len(ids) for _, ids in whole] == [4, 4, 2]
    assert sorted(chunks) == sorted(whole)


def test_scoring_begins_before_the_last_sample_is_there() -> None:
    roles = FakeRoles()
    roles.rows = 2
    events: list[str] = []

    class Parts(FakeParts):
        def parts(self):  # type: ignore[no-untyped-def]
            for part in super().parts():
                events.append(f"part {part[0]}")
                yield part

    class Spy(FakeRoles):
        def generate(self, prompts: list[tuple[int, ...]], sampling: SamplingParams, seed: int) -> FakeParts:
            made = super().generate(prompts, sampling, seed)
            return Parts(made, 2, list)

        def values(self, samples: list[SampleRef]) -> FakePending[list[Any]]:
            events.append(f"values of {len(samples)}")
            return super().values(samples)

    spy = Spy()
    spy.sync_weights(0)
    config = streaming_config()
    collect(spy, make_prompts(7, 3), config, (STOP,), PpoState.start(config), 3)
    assert events == [
        "part 0", "part 2", "values of 4", "part 4", "part 6", "values of 4", "part 8", "values of 2",
    ]  # fmt: skip


def test_a_part_that_never_comes_is_noticed() -> None:
    class Short(FakeParts):
        def parts(self):  # type: ignore[no-untyped-def]
            yield from list(super().parts())[:-1]

    class Broken(FakeRoles):
        def generate(self, prompts: list[tuple[int, ...]], sampling: SamplingParams, seed: int) -> FakeParts:
            return Short(super().generate(prompts, sampling, seed), 2, list)

    roles, config = Broken(), streaming_config()
    roles.sync_weights(0)
    with pytest.raises(CaiError, match="do not belong"):
        collect(roles, make_prompts(7, 3), config, (STOP,), PpoState.start(config), 3)


def test_where_streaming_is_on() -> None:
    def streams(**changes: object) -> bool:
        return make_config(**changes).streams

    def hybrid(*groups: tuple[str, ...]) -> dict[str, object]:
        return {"mode": "hybrid", "share": groups}

    assert streams() and not streams(stream=False) and not streams(schedule="one_step_off")
    assert not streams(schedule="partial", pause_after=2)
    assert not streams(placement={"mode": "colocated"})
    assert not streams(placement=hybrid(("policy", "rollout"), ("value", "reward")))
    assert streams(placement=hybrid(("policy", "value", "reward", "reference")))
