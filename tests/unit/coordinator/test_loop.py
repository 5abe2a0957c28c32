"""The order of things in an iteration, and the update phase."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from cai_dist.config.placement import PlacementConfig, RoleShards
from cai_dist.config.ppo import KlConfig
from cai_dist.coordinator.state import PpoState
from cai_dist.coordinator.update_phase import mini_batches
from cai_dist.coordinator.update_phase import run as update
from cai_dist.types import Trajectory
from tests.fakes import FakeRoles, stand_for
from tests.ids import response_of
from tests.unit.coordinator.small_run import Run, make_config, make_prompts, rollout_of


def trajectory(value: float, target: float, prompt_id: str = "") -> Trajectory:
    return Trajectory(
        (1,), (2,), (0.0,), (0.0,), (value,), (0.0,), (1.0,), (target,), 0.0, "stop", 0, (0.0,), (1.0,), prompt_id
    )


def test_weights_are_transferred_before_the_first_rollout_and_after_each_update(run: Run) -> None:
    roles = FakeRoles()
    run.go(make_config(iterations=3), roles)
    order = [call for call in roles.calls if call.startswith("sync") or call == "start generate"]
    assert order == ["sync 0", "start generate", "sync 1", "start generate", "sync 2", "start generate", "sync 3"]
    assert {item.weight_version for item in run.record.trajectories[2]} == {2}


def test_policy_and_value_step_side_by_side_on_the_same_mini_batch() -> None:
    roles, config = FakeRoles(), make_config(value_warmup=0)
    items = [trajectory(0.0, 1.0, str(n)) for n in range(8)]
    update(roles, rollout_of(items), config, PpoState.start(config), 0)
    start, wait = ["start update_value", "start update_policy"], ["wait update_value", "wait update_policy"]
    # 2 epochs x 8 / 4 steps, each sent out before the one before it is waited for.
    assert roles.calls == start + (start + wait) * 3 + wait
    assert [batch for role, batch in roles.updates if role == "policy"] == [
        batch for role, batch in roles.updates if role == "value"
    ]


def test_on_shared_gpus_they_step_one_after_the_other() -> None:
    """Side by side the collectives of their two groups of ranks would wait for each other on one device."""
    one = PlacementConfig(gpus=1)
    shared = RoleShards(mode="hybrid", share=(("policy", "value"),), policy=one, value=one)
    roles, config = FakeRoles(), make_config(value_warmup=0, placement=shared)
    items = [trajectory(0.0, 1.0, str(n)) for n in range(8)]
    update(roles, rollout_of(items), config, PpoState.start(config), 0)
    value, policy = ["start update_value", "wait update_value"], ["start update_policy", "wait update_policy"]
    assert roles.calls == (value + policy) * 4
    plain, own = FakeRoles(), make_config(value_warmup=0)
    update(plain, rollout_of(items), own, PpoState.start(own), 0)
    assert (roles.policy, roles.value) == (plain.policy, plain.value)


def test_iterations_draw_samples_and_orders_of_their_own(run: Run) -> None:
    """The same prompts, the same weights: only the number of the iteration differs."""
    roles = FakeRoles()
    config = make_config(iterations=2, value_warmup=1, helpful_fraction=0.5, prompts_per_iteration=4)
    run.go(config, roles, prompts=make_prompts(2, 2))
    first, second = (
        {item.prompt_id: response_of(item) for item in run.record.trajectories[iteration]} for iteration in (0, 1)
    )
    assert first.keys() == second.keys()
    assert all(first[prompt_id] != second[prompt_id] for prompt_id in first)
    places = []
    for iteration in (0, 1):
        items = [(item.prompt_id, response_of(item)) for item in run.record.trajectories[iteration]]
        batches = [batch for role, batch in roles.updates if role == "value"][4 * iteration : 4 * iteration + 4]
        places.append([items.index((item.prompt_id, response_of(item))) for batch in batches for item in batch])
    assert sorted(places[0]) == sorted(places[1]) and places[0] != places[1]


def test_the_policy_learns_from_whitened_advantages_and_the_value_model_from_the_same_returns(run: Run) -> None:
    roles = FakeRoles()
    run.go(make_config(iterations=1, value_warmup=0, epochs=1), roles)
    seen = {(item.prompt_id, response_of(item)): item for item in run.record.trajectories[0]}
    assert sum(item.advantages[0] for item in seen.values()) != 0
    for role, batch in roles.updates:
        for item in batch:
            as_told = seen[item.prompt_id, response_of(item)]
            assert item.returns.tolist() == as_told.returns.tolist()
            assert (item.advantages.tolist() == as_told.advantages.tolist()) == (role == "policy")


def test_every_sample_is_used_once_an_epoch_in_a_new_order() -> None:
    items = rollout_of([trajectory(0.0, 1.0, str(n)) for n in range(8)]).trajectory_refs
    ids = [stand_for(item.row).prompt_id for batch in mini_batches(items, make_config(epochs=3), 5) for item in batch]
    epochs = [ids[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(epoch) == sorted(map(str, range(8))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_value_model_warms_up_alone(run: Run) -> None:
    roles = FakeRoles()
    run.go(make_config(iterations=3, value_warmup=2), roles)
    assert Counter(role for role, _ in roles.updates) == {"value": 12, "policy": 4}
    assert [role for role, _ in roles.updates[:8]] == ["value"] * 8
    assert "policy_loss" not in run.record.metrics[2] and "policy_loss" in run.record.metrics[3]
    # The controller waits with the policy.
    assert [run.record.metrics[step]["kl_coefficient"] for step in (1, 2, 3)] == [0.1, 0.1, 0.1]


def test_the_controller_acts_on_the_next_iteration(run: Run) -> None:
    state = run.go(make_config(iterations=3, value_warmup=0, kl=KlConfig(coefficient=0.1, target=1e9, horizon=80)))
    # Far below its target the error is -0.2: x (1 - 0.2 x 8 / 80) an iteration.
    coefficients = [run.record.metrics[step]["kl_coefficient"] for step in (1, 2, 3)]
    assert coefficients == pytest.approx([0.1, 0.1 * 0.98, 0.1 * 0.98**2])
    assert state.kl.coefficient == pytest.approx(0.1 * 0.98**3)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [("token", 1 + 2 + 3 + 4), ("sequence", 4), ("constant", 4 * 6)],  # 6: max_new_tokens of the config
)
def test_the_policy_is_told_denominator_and_kl_coefficient(aggregate: str, expected: float) -> None:
    roles = FakeRoles()
    config = make_config(value_warmup=0, aggregate=aggregate, epochs=1, kl=KlConfig(coefficient=0.3, where="loss"))
    items = [replace(trajectory(0.0, 1.0), response_ids=(1,) * n) for n in (1, 2, 3, 4)]
    update(roles, rollout_of(items), config, PpoState.start(config), 0)
    assert roles.policy_updates == [(expected, 0.3)]


def test_the_controller_acts_on_a_kl_in_the_loss(run: Run) -> None:
    roles = FakeRoles()
    kl = KlConfig(coefficient=0.1, target=1e9, horizon=80, where="loss")
    run.go(make_config(iterations=2, value_warmup=0, epochs=1, kl=kl), roles)
    assert [coefficient for _, coefficient in roles.policy_updates] == pytest.approx([0.1] * 2 + [0.1 * 0.98] * 2)


def test_a_policy_that_moved_too_far_stops_and_the_value_model_goes_on() -> None:
    """The third of four steps finds 0.3 nats: it is the last. A report at the target itself does not stop."""
    roles, config = FakeRoles(approx_kl=[0.0, 0.2, 0.3]), make_config(value_warmup=0, target_kl=0.2)
    items = [trajectory(0.0, 1.0, str(n)) for n in range(8)]
    metrics = update(roles, rollout_of(items), config, PpoState.start(config), 0)
    assert [role for role, _ in roles.updates] == ["value", "policy"] * 3 + ["value"]
    assert (metrics["policy_steps"], metrics["early_stop_step"]) == (3, 3)
    assert metrics["policy_approx_kl"] == pytest.approx(0.5 / 3)


def test_a_step_that_was_left_out_is_not_counted() -> None:
    roles, config = FakeRoles(skips=[0, 1]), make_config(value_warmup=0)
    items = [trajectory(0.0, 1.0, str(n)) for n in range(8)]
    metrics = update(roles, rollout_of(items), config, PpoState.start(config), 0)
    assert (metrics["policy_steps"], metrics["policy_skipped"]) == (3, 1)
    assert "value_skipped" not in metrics


def test_without_a_value_model_the_phase_ends_with_the_policy() -> None:
    items = [trajectory(0.0, 1.0, str(n)) for n in range(8)]
    for reports, steps in (([0.3], 1), ([], 4)):
        roles = FakeRoles(approx_kl=reports)
        config = make_config(algorithm="rloo", value_warmup=0, target_kl=0.2)
        metrics = update(roles, rollout_of(items), config, PpoState.start(config), 0)
        assert [role for role, _ in roles.updates] == ["policy"] * steps
        assert ("early_stop_step" in metrics) == (steps == 1) and "explained_variance" not in metrics


def test_no_target_no_early_stop() -> None:
    roles, config = FakeRoles(approx_kl=[9.0] * 4), make_config(value_warmup=0)
    metrics = update(
        roles, rollout_of([trajectory(0.0, 1.0, str(n)) for n in range(8)]), config, PpoState.start(config), 0
    )
    assert metrics["policy_steps"] == 4 and "early_stop_step" not in metrics


def test_metrics_name_their_role_and_average_over_steps(run: Run) -> None:
    roles = FakeRoles()
    run.go(make_config(iterations=1, value_warmup=0), roles)
    metrics = run.record.metrics[1]
    assert metrics["policy_ratio"] == 1.0
    signals = [
        sum(
            (sum(i.advantages.tolist()) + sum(i.returns.tolist()) + i.score) / place
            for place, i in enumerate(batch, start=1)
        )
        for role, batch in roles.updates
        if role == "value"
    ]
    assert metrics["value_loss"] == pytest.approx(sum(signals) / 4)
    assert {"score", "explained_variance", "sync_bytes", "rollout_seconds", "update_seconds"} <= metrics.keys()


def test_state_counts_scores_and_versions(run: Run) -> None:
    state = run.go(make_config(iterations=3))
    scores = [item.score for items in run.record.trajectories.values() for item in items]
    assert (state.iteration, state.weight_version, state.scores.count) == (3, 3, 24)
    assert state.scores.mean == pytest.approx(sum(scores) / 24)
