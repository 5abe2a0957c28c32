"""Rows 12 and 13: a run that is stopped or killed anywhere ends as if it had not been."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cai_dist.coordinator.state import PpoState
from cai_dist.errors import CheckpointError, Interrupted, WorkerError
from tests.fakes import FakeRoles
from tests.unit.coordinator.small_run import Run, make_config, make_prompts

N = 6


def after(iterations: int) -> Callable[[], bool]:
    """A stop request that comes while iteration number `iterations` is under way."""
    asked = iter(range(10_000))
    return lambda: next(asked) >= iterations


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, PpoState, FakeRoles]:
    """The run that nothing happened to."""
    run, roles = Run(tmp_path_factory.mktemp("whole")), FakeRoles()
    return run, run.go(roles=roles), roles


@pytest.mark.parametrize("every", [1, 2, 4])
@pytest.mark.parametrize("k", range(N + 1))
def test_stopped_after_k_iterations(k: int, every: int, run: Run, whole: tuple[Run, PpoState, FakeRoles]) -> None:
    expected, expected_state, expected_roles = whole
    config = make_config(checkpoint_every=every)
    if k < N:
        with pytest.raises(Interrupted, match=f"after {k} of {N}"):
            run.go(config, should_stop=after(k))
    else:
        run.go(config, should_stop=after(k))
    assert sorted(run.record.trajectories) == list(range(k))
    before = dict(run.record.trajectories)
    run.record.trajectories.clear()
    roles = FakeRoles()
    assert run.go(config, roles=roles) == expected_state
    # Nothing twice, nothing left out, every number the same.
    assert sorted(run.record.trajectories) == list(range(k, N))
    assert {**before, **run.record.trajectories} == expected.record.trajectories
    assert run.record.timeless() == expected.record.timeless()
    assert (roles.policy, roles.value) == (expected_roles.policy, expected_roles.value)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("update", [0, 3, 4, 11, 20, 37])
def test_killed_in_the_middle_of_an_update(
    update: int, every: int, run: Run, whole: tuple[Run, PpoState, FakeRoles]
) -> None:
    expected, expected_state, _ = whole
    config = make_config(checkpoint_every=every)
    with pytest.raises(WorkerError, match="told to fail"):
        run.go(config, roles=FakeRoles(fail_at_update=update))
    assert run.go(config) == expected_state
    assert run.record.trajectories == expected.record.trajectories
    assert run.record.timeless() == expected.record.timeless()


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "rloo"},
        {"algorithm": "reinforce++", "importance_cap": 2.0, "target_kl": 0.5},
        {"algorithm": "reinforce++-group", "score_normalization": "running", "missing_eos_penalty": 0.5},
        {"algorithm": "grpo", "score_length": "residual"},
        {"algorithm": "dr-grpo", "score_normalization": "batch"},
        {"algorithm": "ppo", "score_normalization": "running", "bootstrap_truncated": True, "score_length": "residual"},
    ],
    ids=lambda changes: changes["algorithm"],
)
def test_every_algorithm_goes_on_where_it_was(changes: dict[str, object], tmp_path: Path) -> None:
    """Controller (of a KL in reward or loss), running statistics and data: all of it is in the checkpoint."""
    config = make_config(value_warmup=0, **changes)
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    expected_roles, roles = FakeRoles(), FakeRoles()
    expected = whole.go(config, expected_roles)
    assert expected.kl.coefficient != 0.1 and expected.scores.count == 8 * N
    with pytest.raises(Interrupted):
        parts.go(config, should_stop=after(2))
    assert parts.go(config, roles) == expected
    assert parts.record.trajectories == whole.record.trajectories
    assert parts.record.timeless() == whole.record.timeless()
    assert roles.policy == expected_roles.policy != FakeRoles().policy
    if changes["algorithm"] != "ppo":
        assert roles.value == FakeRoles().value, "no value model was trained"


def test_stopped_again_before_anything_new(run: Run, whole: tuple[Run, PpoState, FakeRoles]) -> None:
    for _ in range(2):
        with pytest.raises(Interrupted, match=f"after 2 of {N}"):
            run.go(should_stop=after(0) if run.record.trajectories else after(2))
    assert sorted(path.name for path in run.folder.iterdir()) == ["step-1", "step-2"]
    assert run.go() == whole[1]


def test_a_run_can_be_lengthened(run: Run, whole: tuple[Run, PpoState, FakeRoles]) -> None:
    run.go(make_config(iterations=2))
    assert run.go(make_config(iterations=N)) == whole[1]
    assert run.record.trajectories == whole[0].record.trajectories


def test_seeds_matter(run: Run, whole: tuple[Run, PpoState, FakeRoles]) -> None:
    run.go(seed=4)
    assert run.record.trajectories[0] != whole[0].record.trajectories[0]


def test_checkpoints_are_written_when_due_and_at_the_end(run: Run) -> None:
    run.go(make_config(iterations=5, checkpoint_every=2))
    assert sorted(path.name for path in run.folder.iterdir()) == ["step-2", "step-4", "step-5"]


def test_a_checkpoint_of_another_run_is_refused(run: Run) -> None:
    run.go(make_config(iterations=1))
    with pytest.raises(CheckpointError, match=r"different: seed\)"):
        run.go(seed=4)
    with pytest.raises(CheckpointError, match=r"different: prompts\)"):
        run.go(prompts=make_prompts(6, 3))
    with pytest.raises(CheckpointError, match=r"different: algorithm\)"):
        run.go(make_config(iterations=1, algorithm="rloo", value_warmup=0))


@pytest.mark.parametrize("damage", ["{", "{}", '{"identity": {}, "kl": 3}', "[]"])
def test_a_damaged_checkpoint_is_named(damage: str, run: Run) -> None:
    run.go(make_config(iterations=1))
    (run.folder / "step-1" / "state.json").write_text(damage)
    with pytest.raises(CheckpointError, match="state.json cannot be read"):
        run.go()


def test_a_renamed_checkpoint_is_refused(run: Run) -> None:
    run.go(make_config(iterations=1))
    (run.folder / "step-1").rename(run.folder / "step-4")
    with pytest.raises(CheckpointError, match="says iteration 1, expected 4"):
        run.go()


def test_state_survives_json_exactly(whole: tuple[Run, PpoState, FakeRoles], tmp_path: Path) -> None:
    state = whole[1]
    assert state.kl.coefficient != 0.1  # the controller has moved
    assert PpoState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("update", [0, 11, 20, 37])
def test_snapshots_are_those_of_an_uninterrupted_run(update: int, every: int, tmp_path: Path) -> None:
    """Killed in an update, or just after a snapshot was taken: in the end each is there, and the policy it should be.
    The last iteration has none, the model itself is that."""
    config = make_config(snapshot_every=2, checkpoint_every=every, value_warmup=0)
    whole: dict[int, float] = {}
    roles = FakeRoles()
    Run(tmp_path / "whole").go(config, roles, snapshot=lambda i: whole.update({i: roles.policy}))
    assert list(whole) == [2, 4] and whole[2] != whole[4]
    kept: dict[int, float] = {}

    def keep(of: FakeRoles, dies: bool) -> Callable[[int], None]:
        def snapshot(iteration: int) -> None:
            assert kept.setdefault(iteration, of.policy) == of.policy, "taken twice, and not the same"
            if dies and iteration == 4:
                raise WorkerError("snapshot", "policy", 0, "here", "killed after the snapshot, before the checkpoint")

        return snapshot

    parts = Run(tmp_path / "parts")
    for roles_of_part, dies in ((FakeRoles(fail_at_update=update), False), (FakeRoles(), True), (FakeRoles(), False)):
        with contextlib.suppress(WorkerError):
            parts.go(config, roles_of_part, snapshot=keep(roles_of_part, dies))
    assert kept == whole
