"""Schedules: which weights make which samples, what is checked, carried, corrected and resumed."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_dist.config.ppo import PpoConfig
from cai_dist.config.training import SamplingConfig
from cai_dist.coordinator.schedules.partial import joined, staleness
from cai_dist.coordinator.schedules.protocol import sample_from_dict, sample_to_dict
from cai_dist.errors import CheckpointError, Interrupted, StaleEngineError, WorkerError
from cai_dist.types import Generation, SamplingParams
from tests.fakes import FakeParts, FakePending, FakeRoles
from tests.ids import prompt_of, response_of
from tests.unit.coordinator.small_run import STOP, Run, make_config, make_prompts

ONE_OFF = {"schedule": "one_step_off", "value_warmup": 0}
PARTIAL = {"schedule": "partial", "pause_after": 2, "value_warmup": 0}


def config_of(kind: dict[str, object], **changes: object) -> PpoConfig:
    return make_config(**(kind | changes))


def versions_of(run: Run, iteration: int) -> set[int]:
    return {v for t in run.record.trajectories[iteration] for v in t.token_versions.tolist()}


# ---- one step off


def test_samples_are_one_update_behind(run: Run) -> None:
    run.go(config_of(ONE_OFF))
    assert [versions_of(run, k) for k in range(6)] == [{max(k - 1, 0)} for k in range(6)]
    metrics = run.record.metrics
    assert metrics[1]["mismatch_mean"] == 0.0 and "offpolicy_mean" not in metrics[1]
    for step in range(2, 7):
        assert metrics[step]["mismatch_mean"] == 0.0, "by a few samples of the trainer's weights"
        assert metrics[step]["stale_tokens"] == metrics[step]["staleness_max"] == 1.0
        assert metrics[step]["offpolicy_mean"] > 0 and metrics[step]["offpolicy_kl"] > 0


@pytest.mark.parametrize("kind", [ONE_OFF, PARTIAL], ids=["one_step_off", "partial"])
def test_a_transfer_that_loses_something_shows_in_the_iteration_after_it(kind: dict[str, object], run: Run) -> None:
    """Whichever it is; and looking changes no sample."""

    class Losing(FakeRoles):
        def sync_weights(self, version: int) -> dict[str, float]:
            numbers = super().sync_weights(version)
            if version == 3:
                self.sampler = (version, self.policy + 0.25)
            return numbers

    run.go(config_of(kind), Losing())
    seen = {step: metrics["mismatch_max"] for step, metrics in run.record.metrics.items()}
    assert [step for step, largest in seen.items() if largest > 1e-9] == [4]
    assert sorted(seen) == list(range(1, 7))


def test_the_next_samples_are_scored_while_this_update_goes_on_and_are_there_before_the_transfer(run: Run) -> None:
    """By those who do not learn; by the policy with the weights that learn from them."""
    roles = FakeRoles()
    run.go(config_of(ONE_OFF, iterations=3), roles)
    shown = {
        "start generate": "generate", "wait generate": "samples", "start reference_logprobs": "reference",
        "start scores": "reward", "start policy_logprobs": "policy", "start update_policy": "update",
        "wait update_policy": "updated",
    }  # fmt: skip
    order = [shown.get(call, call) for call in roles.calls if call in shown or call.startswith("sync")]
    first = ["generate", "samples", *["reference", "reward"] * 2]
    score, probe = ["policy"] * 2, ["samples", "policy"]
    # The samples come while the first step is waited for: two steps have been sent out by then.
    update = ["update"] * 2 + ["updated", "update"] * 2 + ["updated"] * 2
    ahead = update[:2] + ["samples", *["reference", "reward"] * 2] + update[2:]
    assert order == [
        "sync 0",
        *first, "generate", *score, *ahead, "sync 1",
        "generate", "generate", *score, *probe, *ahead, "sync 2",
        "generate", *score, *probe, *update, "sync 3",
    ]  # fmt: skip


@pytest.mark.parametrize("stop", [1, 3])
def test_who_is_asked_when_makes_no_difference(stop: int, run: Run, tmp_path: Path) -> None:
    """Ahead, not ahead, and after a checkpoint, whose samples nobody has been asked about."""
    run.go(config_of(ONE_OFF))
    late = Run(tmp_path / "late")
    roles = FakeRoles()
    late.go(config_of(ONE_OFF, stream=False), roles)
    assert roles.calls.index("start reference_logprobs") > roles.calls.index("start policy_logprobs")
    again = Run(tmp_path / "again")
    asked = itertools.count()
    with pytest.raises(Interrupted):
        again.go(config_of(ONE_OFF), should_stop=lambda: next(asked) == stop)
    again.go(config_of(ONE_OFF))
    for other in (late, again):
        assert other.record.trajectories == run.record.trajectories


def test_looking_ahead_wants_roles_that_share_with_nobody_and_a_reference_of_its_own() -> None:
    def ahead(**changes: object) -> bool:
        return config_of(ONE_OFF, **changes).looks_ahead

    def hybrid(*group: str) -> dict[str, object]:
        return {"mode": "hybrid", "share": (group,)}

    assert ahead() and not ahead(stream=False) and not make_config().looks_ahead
    assert ahead(placement=hybrid("policy", "value")) and not ahead(placement=hybrid("policy", "reference"))
    assert not ahead(placement=hybrid("value", "reward")) and not ahead(lora={"rank": 2})


def test_old_samples_are_weighted_by_what_the_policy_makes_of_them_now(run: Run) -> None:
    """The trainer's log-probabilities are those of the policy that learns, not of the one that sampled; the fake's are
    -1 - 0.1 w (token + 1)."""
    roles = FakeRoles()
    run.go(config_of(ONE_OFF, importance_cap=0.99), roles)
    items = [item for batch in run.record.trajectories.values() for item in batch]
    capped = set()
    for item in items:
        for weight, ours, theirs in zip(item.weights, item.old_logprobs, item.sampler_logprobs, strict=True):
            assert weight == pytest.approx(min(math.exp(ours - theirs), 0.99))
            if ours != theirs:
                capped.add(weight == 0.99)
    assert capped == {True, False}
    assert config_of(ONE_OFF).importance_bound == 2.0
    assert make_config().importance_bound is None


class Lagging(FakeRoles):
    """A sampler that says that its samples are of other weights."""

    def __init__(self, lag: Callable[[int], int]) -> None:
        super().__init__()
        self.lag = lag

    def _sample(self, *args: object) -> Generation:
        sample = super()._sample(*args)  # type: ignore[arg-type]
        return replace(sample, weight_version=self.lag(sample.weight_version))


@pytest.mark.parametrize("kind", [ONE_OFF, PARTIAL], ids=["one_step_off", "partial"])
@pytest.mark.parametrize("lag", [-1, 1])
def test_samples_of_other_weights_than_the_samplers_are_refused(kind: dict[str, object], lag: int, run: Run) -> None:
    with pytest.raises(StaleEngineError, match="comes from weight version"):
        run.go(config_of(kind), Lagging(lambda version: version + lag if version == 2 else version))


# ---- partial


class Counting(FakeRoles):
    """Notes how many tokens each request may have."""

    def __init__(self) -> None:
        super().__init__()
        self.limits: list[int] = []

    def _sample(self, *args: object) -> Generation:
        self.limits.append(args[1].max_new_tokens)  # type: ignore[attr-defined]
        return super()._sample(*args)  # type: ignore[arg-type]


@pytest.mark.slow
@settings(max_examples=25)
@given(
    st.sampled_from([(1, 6), (2, 6), (3, 6), (2, 8), (1, 4)]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 5),
    st.integers(1, 7),
)
def test_partial_keeps_its_promises(
    pause: tuple[int, int], prompts: int, samples: int, seed: int, iterations: int
) -> None:
    """Whole groups, every prompt of the run once, each token of weights no older than the bound and never newer than
    the next one's, no request for more than a round, and the log-probabilities of the weights that made each token."""
    config = config_of(
        PARTIAL, pause_after=pause[0], sampling=SamplingConfig(max_new_tokens=pause[1]), iterations=iterations,
        prompts_per_iteration=prompts, samples_per_prompt=samples, mini_batch=prompts * samples,
    )  # fmt: skip
    roles, weights = Counting(), {}

    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        sync = roles.sync_weights

        def noted(version: int) -> dict[str, float]:
            weights[version] = roles.policy
            return sync(version)

        roles.sync_weights = noted  # type: ignore[method-assign]
        run.go(config, roles, seed=seed)
        plain = Run(Path(folder) / "sync")
        plain.go(config.model_copy(update={"schedule": "sync"}), seed=seed)
    assert set(roles.limits) == {pause[0]}
    for iteration, items in run.record.trajectories.items():
        assert len(items) == prompts * samples
        for start in range(0, len(items), samples):
            assert len({prompt_of(item) for item in items[start : start + samples]}) == 1
        for item in items:
            versions = item.token_versions.tolist()
            assert len(versions) == len(item.response_ids) <= pause[1]
            assert all(iteration - staleness(config) <= version <= iteration for version in versions)
            assert list(versions) == sorted(versions) and versions[-1] == item.weight_version
            assert item.finish == ("stop" if response_of(item)[-1] == STOP else "length")
            assert STOP not in response_of(item)[:-1]
            assert item.finish == "stop" or len(item.response_ids) == pause[1]
            expected = [-1 - 0.1 * weights[v] * (t + 1) for t, v in zip(response_of(item), versions, strict=True)]
            assert item.sampler_logprobs.tolist() == np.float32(expected).tolist()
    of_all = [Counter(t.prompt_id for items in r.record.trajectories.values() for t in items) for r in (run, plain)]
    assert of_all[0] == of_all[1], "over the run, the prompts of sync"


def test_long_responses_go_on_under_new_weights_and_short_ones_do_not_wait(run: Run) -> None:
    config = config_of(PARTIAL, pause_after=1, sampling=SamplingConfig(max_new_tokens=6))
    run.go(config)
    items = [item for batch in run.record.trajectories.values() for item in batch]
    assert any(len(set(item.versions.tolist())) > 1 for item in items), "some response was paused across an update"
    assert any(metrics["rounds"] < 6 for metrics in run.record.metrics.values())
    last = run.record.metrics[6]
    assert last["carried_groups"] == 0 and run.record.metrics[3]["carried_groups"] == 4
    mixed = [m for m in run.record.metrics.values() if 0 < m.get("stale_tokens", 0) < 1]
    assert mixed and all(m["mismatch_mean"] < 1e-12 < m["offpolicy_mean"] for m in mixed)


def test_a_response_and_its_continuation() -> None:
    before = Generation((1, 2), (3, 4), (-0.1, -0.2), "length", 5)
    part = Generation((1, 2, 3, 4), (6,), (-0.3,), "stop", 7)
    whole = joined(before, part)
    assert whole == Generation((1, 2), (3, 4, 6), (-0.1, -0.2, -0.3), "stop", 7, versions=(5, 5, 7))
    again = joined(whole, Generation((1, 2, 3, 4, 6), (8, 9), (-0.4, -0.5), "length", 7))
    assert again.token_versions.tolist() == [5, 5, 7, 7, 7]
    same = joined(before, replace(part, weight_version=5))
    assert len(same.versions) == 0 and same.token_versions.tolist() == [5, 5, 5]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats(-1e9, 0), st.integers(0, 5)), min_size=1, max_size=5),
    st.sampled_from(["stop", "length"]),
)
def test_samples_survive_json_exactly(tokens: list[tuple[int, float, int]], finish: str) -> None:
    ids, logprobs, versions = zip(*tokens, strict=True)
    sample = Generation((1,), ids, logprobs, finish, versions[-1], versions=versions)  # type: ignore[arg-type]
    assert sample_from_dict(json.loads(json.dumps(sample_to_dict(sample)))) == sample


# ---- resume


def killed_at(call: int) -> FakeRoles:
    """Roles of which the `call`-th answer never comes."""
    roles, count = FakeRoles(), itertools.count()
    start = roles._call

    def counted(name: str, compute: Callable[[], object]) -> FakePending[object]:
        def dies() -> object:
            if next(count) == call:
                raise WorkerError(name, "policy", 0, "here", "killed")
            return compute()

        return start(name, dies)

    roles._call = counted  # type: ignore[method-assign, assignment]
    return roles


@pytest.mark.slow
@settings(max_examples=40)
@given(
    st.sampled_from([ONE_OFF, PARTIAL]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.lists(st.integers(0, 80), min_size=1, max_size=3),
    st.integers(0, 6),
)
def test_killed_anywhere_ends_as_if_it_had_not_been(
    kind: dict[str, object], every: int, pause: int, kills: list[int], stop: int
) -> None:
    config = config_of(kind | ({"pause_after": pause} if kind is PARTIAL else {}), checkpoint_every=every)
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Run(Path(folder) / "whole"), Run(Path(folder) / "parts")
        expected_roles, roles = FakeRoles(), FakeRoles()
        expected = whole.go(config, expected_roles)
        for kill in kills:
            with contextlib.suppress(WorkerError):
                parts.go(config, killed_at(kill))
        asked = iter(range(10_000))
        with contextlib.suppress(Interrupted):
            parts.go(config, should_stop=lambda: next(asked) >= stop)
        assert parts.go(config, roles) == expected
        assert parts.record.trajectories == whole.record.trajectories
        assert parts.record.timeless() == whole.record.timeless()
        assert (roles.policy, roles.value) == (expected_roles.policy, expected_roles.value)


@pytest.mark.parametrize("kind", [ONE_OFF, PARTIAL], ids=["one_step_off", "partial"])
def test_a_checkpoint_without_its_samples_is_refused(kind: dict[str, object], run: Run) -> None:
    run.go(config_of(kind, iterations=2))
    path = run.folder / "step-2" / "samples.json"
    for damage in ("{", "{}", "[]", None):
        path.write_text(damage) if damage is not None else path.unlink()
        with pytest.raises(CheckpointError, match="samples.json cannot be read"):
            run.go(config_of(kind))


def test_schedules_do_not_go_on_from_each_other(run: Run) -> None:
    run.go(config_of(ONE_OFF, iterations=2))
    with pytest.raises(CheckpointError, match=r"different: schedule\)"):
        run.go(make_config(value_warmup=0))


# ---- phases


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ({"stream": False}, ["rollout", "score", "update", "transfer"] * 2),
        ({}, ["rollout", "score", "update", "transfer"] * 2),
        (ONE_OFF, ["rollout", "rollout", "score", "update", "transfer", "rollout", "score", "update", "transfer"]),
        (PARTIAL, ["rollout", "score", "update", "transfer"] * 2),
    ],
    ids=["sync", "streamed", "one_step_off", "partial"],
)
def test_every_phase_is_entered_before_its_first_call(kind: dict[str, object], expected: list[str], run: Run) -> None:
    roles = FakeRoles()
    run.go(make_config(iterations=2, **kind), roles)
    assert [phase for phase, _ in roles.phases] == ["transfer", *expected]
    belongs = {"generate": "rollout", "update_policy": "update", "update_value": "update"}
    if not make_config(**kind).looks_ahead:
        belongs["scores"] = "score"
    for number, call in enumerate(roles.calls):
        before = [phase for phase, calls in roles.phases if calls <= number]
        if call.startswith("start ") and (name := call.removeprefix("start ")) in belongs:
            assert before[-1] == belongs[name]
        if call.startswith("sync"):
            assert before[-1] == "transfer"
        if call == "wait generate" and not make_config(**kind).rollout_alone:
            assert before[-1] == "rollout"


def test_a_response_goes_on_from_its_prompt_and_all_its_tokens(run: Run) -> None:
    """That is what is sent; the trajectory does not count the tokens as its prompt."""
    sent: set[tuple[int, ...]] = set()

    class Spy(FakeRoles):
        def generate(self, prompts: list[tuple[int, ...]], sampling: SamplingParams, seed: int) -> FakeParts:
            sent.update(prompts)
            return super().generate(prompts, sampling, seed)

    run.go(config_of(PARTIAL), Spy())
    items = [item for batch in run.record.trajectories.values() for item in batch]
    assert sent == {(*prompt_of(t), *response_of(t)[:n]) for t in items for n in range(0, len(t.response_ids), 2)}
    assert {prompt_of(t) for t in items} <= {prompt.ids for prompt in make_prompts(7, 3)}
