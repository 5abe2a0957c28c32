"""Rows 1, 11, 14, 18, 22, 25 and 27: where rewards sit, what they add up to, and which answers are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean, pstdev

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_dist.config.ppo import KlConfig, PpoConfig
from cai_dist.config.training import SamplingConfig
from cai_dist.coordinator.rollout_phase import Rollout
from cai_dist.coordinator.state import PpoState
from cai_dist.errors import CaiError, StaleEngineError
from cai_dist.experience.rewards import Shaped, shape
from cai_dist.types import Generation, SamplingParams
from tests.fakes import FakeParts, FakePending, FakeRoles, collect
from tests.ids import response_of
from tests.unit.coordinator.small_run import STOP, make_config, make_prompts

finite = st.floats(-5, 5)
rows = st.lists(st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=6), min_size=1, max_size=5)


def collected(roles: FakeRoles | None = None, config: PpoConfig | None = None) -> Rollout:
    one_chunk = {"ranks": 2, "micro_batch": 4}
    roles, config = roles or FakeRoles(), config or make_config(policy=one_chunk)
    roles.sync_weights(0)
    return collect(roles, make_prompts(7, 3), config, (STOP,), PpoState.start(config), 3)


def shaped_by(
    logprobs: list[list[float]],
    reference: list[list[float]],
    values: list[list[float]],
    scores: list[float],
    config: PpoConfig,
    coefficient: float,
) -> Shaped:
    """`shape` of finished responses."""
    after = [[*row, 0.0] for row in values]
    return shape(
        logprobs,
        reference,
        after,
        torch.tensor(scores, dtype=torch.float64),
        [False] * len(scores),
        config,
        coefficient,
    )


@settings(max_examples=60)
@given(rows, st.data())
def test_rewards_are_conserved_and_the_score_sits_on_the_last_token(
    samples: list[list[tuple[float, float, float]]], data: st.DataObject
) -> None:
    scores = data.draw(st.lists(finite, min_size=len(samples), max_size=len(samples)))
    logprobs, reference, values = ([[t[i] for t in sample] for sample in samples] for i in range(3))
    shaped = shaped_by(logprobs, reference, values, scores, make_config(), 0.1)
    for n, sample in enumerate(samples):
        kl = [logprob - ref for logprob, ref, _ in sample]
        rewards = shaped.rewards[n].tolist()
        expected = [-0.1 * number for number in kl]
        expected[-1] += scores[n]
        assert rewards[: len(sample)] == pytest.approx(expected)
        assert not any(rewards[len(sample) :])
        assert math.fsum(rewards) == pytest.approx(scores[n] - 0.1 * math.fsum(kl))
    assert shaped.mask.sum().item() == sum(map(len, samples))


def test_shaping_by_hand() -> None:
    # KL 0.5 and -1 at 0.2 each token: -0.1 and 0.2; the score of 2 is added to the last.
    # gamma = lambda = 1, no values: advantages are sums to the end. Row 2 is one token long.
    config = make_config(gamma=1.0, gae_lambda=1.0, whiten_advantages=False)
    shaped = shaped_by([[-1.0, -2.0], [-1.0]], [[-1.5, -1.0], [-1.0]], [[0.0, 0.0], [4.0]], [2.0, 0.0], config, 0.2)
    assert shaped.returns is not None
    assert shaped.rewards.flatten().tolist() == pytest.approx([-0.1, 2.2, 0.0, 0.0])
    assert shaped.advantages.flatten().tolist() == pytest.approx([2.1, 2.2, -4.0, 0.0])
    assert shaped.returns.flatten().tolist() == pytest.approx([2.1, 2.2, 0.0, 0.0])


def test_a_score_of_zero_is_a_score() -> None:
    config = make_config(whiten_advantages=False)
    shaped = shaped_by([[0.0]], [[0.0]], [[2.0]], [0.0], config, 0.1)
    assert shaped.rewards.tolist() == [[0.0]]
    assert shaped.advantages.tolist() == [[-2.0]]


def test_advantages_are_whitened_over_all_samples_and_returns_are_not() -> None:
    plain = collected(config=make_config(whiten_advantages=False)).trajectories
    whitened = collected().trajectories
    assert [item.returns.tolist() for item in plain] == [item.returns.tolist() for item in whitened]
    before = [number for item in plain for number in item.advantages]
    after = [number for item in whitened for number in item.advantages]
    mean, deviation = fmean(before), pstdev(before)
    assert after == pytest.approx([(number - mean) / deviation for number in before])
    assert after != pytest.approx(before)


@pytest.mark.parametrize(("estimator", "kl"), [("k1", -1.0), ("k2", 0.5), ("k3", math.e - 2)])
def test_the_penalty_of_each_estimator_by_hand(estimator: str, kl: float) -> None:
    config = make_config(whiten_advantages=False, kl=KlConfig(estimator=estimator))  # type: ignore[arg-type]
    shaped = shaped_by([[-2.0]], [[-1.0]], [[0.0]], [3.0], config, 0.2)
    assert shaped.rewards.tolist() == [pytest.approx([3.0 - 0.2 * kl])]
    assert shaped.kl.tolist() == [[-1.0]], "what is logged and steers the controller is k1, whatever the penalty"


def test_a_kl_in_the_loss_is_not_in_the_rewards_too() -> None:
    config = make_config(whiten_advantages=False, kl=KlConfig(where="loss"))
    shaped = shaped_by([[-2.0, -1.0]], [[-1.0, -3.0]], [[0.0, 0.0]], [3.0], config, 0.2)
    assert shaped.rewards.tolist() == [[0.0, 3.0]]


def test_scoring_roles_run_at_the_same_time() -> None:
    roles = FakeRoles()
    collected(roles)
    started = {"start reference_logprobs", "start policy_logprobs", "start values", "start scores"}
    after_generation = roles.calls[roles.calls.index("wait generate") + 1 :]
    assert set(after_generation[:4]) == started
    assert all(call.startswith("wait") for call in after_generation[4:8])
    assert after_generation[8:] == ["start make_trajectories", "wait make_trajectories"]


def test_trajectories_carry_what_was_sampled() -> None:
    roles = FakeRoles()
    rollout = collected(roles)
    assert len(rollout.trajectories) == 8
    for item in rollout.trajectories:
        assert len(item.response_ids) == len(item.rewards) == len(item.advantages) == len(item.returns)
        assert item.weight_version == 0
        assert (item.finish == "stop") == (response_of(item)[-1] == STOP)
        assert item.score == sum(response_of(item)) % 7 / 2 - 1
        assert item.prompt_id.startswith(item.prompt_kind)
    # Two samples of each prompt, side by side and not the same.
    ids = [item.prompt_id for item in rollout.trajectories]
    assert ids[::2] == ids[1::2] and len(set(ids)) == 4
    responses = [response_of(item) for item in rollout.trajectories]
    assert responses[::2] != responses[1::2]


def test_metrics_by_another_way() -> None:
    roles = FakeRoles()
    roles.reference = 0.0  # apart from the policy, so that there is a KL
    rollout = collected(roles)
    items, metrics = rollout.trajectories, rollout.metrics
    kl = [math.fsum(item.old_logprobs) - math.fsum(item.ref_logprobs) for item in items]
    tokens = sum(len(item.response_ids) for item in items)
    assert metrics["kl_per_response"] == pytest.approx(fmean(kl)) and metrics["kl_per_response"] != 0
    assert metrics["kl_per_token"] == pytest.approx(sum(kl) / tokens)
    assert metrics["score"] == pytest.approx(fmean(item.score for item in items))
    assert metrics["score_helpful"] == pytest.approx(fmean(i.score for i in items if i.prompt_kind == "helpful"))
    assert metrics["score_red_team"] == pytest.approx(fmean(i.score for i in items if i.prompt_kind == "red_team"))
    assert metrics["entropy"] == pytest.approx(-sum(math.fsum(i.old_logprobs) for i in items) / tokens)
    assert metrics["response_length"] == tokens / 8
    assert metrics["truncated"] == sum(i.finish == "length" for i in items) / 8
    assert metrics["kl_coefficient"] == 0.1
    assert metrics["mismatch_mean"] == metrics["mismatch_max"] == 0.0


def test_a_mismatch_between_sampler_and_trainer_shows() -> None:
    roles = FakeRoles()
    roles.sync_weights(0)
    roles.policy += 0.5  # the trainer's weights differ from those that sampled
    config = make_config()
    rollout = collect(roles, make_prompts(7, 3), config, (STOP,), PpoState.start(config), 3)
    # 0.1 x 0.5 x (token + 1), token 0..9.
    worst = max(token for item in rollout.trajectories for token in response_of(item))
    assert rollout.metrics["mismatch_max"] == pytest.approx(0.05 * (worst + 1))
    assert 0 < rollout.metrics["mismatch_mean"] < rollout.metrics["mismatch_max"]


def test_sampler_logprobs_spare_the_policy() -> None:
    roles = FakeRoles()
    roles.sync_weights(0)
    roles.policy += 0.5
    config = make_config(old_logprobs="sampler")
    rollout = collect(roles, make_prompts(7, 3), config, (STOP,), PpoState.start(config), 3)
    assert "start policy_logprobs" not in roles.calls
    first = rollout.trajectories[0]
    assert first.old_logprobs[0] == np.float32(-1 - 0.1 * 0.5 * (response_of(first)[0] + 1))


def test_policy_and_reference_are_asked_at_the_temperature_of_the_sampler() -> None:
    roles = FakeRoles()
    collected(roles, make_config(sampling=SamplingConfig(max_new_tokens=6, temperature=0.7)))
    assert roles.temperatures == {"policy": 0.7, "reference": 0.7}


@pytest.mark.parametrize("bootstrap", [False, True])
def test_what_follows_a_truncated_response(bootstrap: bool) -> None:
    """Nothing by default: it was scored as it stands. Or the value of the state after its last token (the fake's is
    0.25 x (tokens + 1)), discounted. A finished response is over in either case."""
    config = make_config(kl=KlConfig(coefficient=0.0), gamma=0.5, bootstrap_truncated=bootstrap)
    trajectories = collected(config=config).trajectories
    assert {item.finish for item in trajectories} == {"stop", "length"}
    for item in trajectories:
        assert len(item.values) == len(item.response_ids)
        more = 0.5 * 0.25 * (len(item.response_ids) + 1) if bootstrap and item.finish == "length" else 0.0
        assert item.returns[-1] == pytest.approx(item.score + more)


def test_shaping_of_scores_reaches_the_rewards_and_leaves_the_raw_score() -> None:
    config = make_config(kl=KlConfig(coefficient=0.0), missing_eos_penalty=0.75, score_clip=0.5)
    rollout = collected(config=config)
    for item in rollout.trajectories:
        clipped = min(max(item.score, -0.5), 0.5)
        assert item.rewards[-1] == pytest.approx(clipped - 0.75 * (item.finish == "length"))
    assert rollout.metrics["score"] == pytest.approx(fmean(item.score for item in rollout.trajectories))
    assert rollout.metrics["score_shaped"] == pytest.approx(fmean(item.rewards[-1] for item in rollout.trajectories))


def test_the_loss_weighs_tokens_by_aggregation_and_importance() -> None:
    roles = FakeRoles()
    roles.sync_weights(0)
    roles.policy += 0.5  # the trainer is less sure of its tokens than the sampler was: ratios exp(-0.05 (token + 1))
    config = make_config(aggregate="sequence", importance_cap=0.8)
    rollout = collect(roles, make_prompts(7, 3), config, (STOP,), PpoState.start(config), 3)
    ratios = []
    for item in rollout.trajectories:
        ours = [math.exp(-0.05 * (token + 1)) for token in response_of(item)]
        assert item.weights == pytest.approx([min(ratio, 0.8) / len(ours) for ratio in ours])
        ratios += ours
    assert rollout.metrics["importance_mean"] == pytest.approx(fmean(ratios))
    assert rollout.metrics["importance_max"] == pytest.approx(max(ratios))
    assert rollout.metrics["importance_capped"] == pytest.approx(fmean(ratio > 0.8 for ratio in ratios))
    assert 0 < rollout.metrics["importance_capped"] < 1


def test_importance_is_logged_where_both_are_known_and_weighs_nothing_unless_asked() -> None:
    rollout = collected()
    assert rollout.metrics["importance_ess"] == rollout.metrics["importance_mean"] == 1.0
    assert all(set(item.weights) == {1.0} for item in rollout.trajectories)
    assert "importance_ess" not in collected(config=make_config(old_logprobs="sampler")).metrics


@pytest.mark.parametrize("algorithm", ["rloo", "reinforce++", "reinforce++-group", "grpo", "dr-grpo"])
def test_without_a_value_model_none_is_asked(algorithm: str) -> None:
    roles = FakeRoles()
    rollout = collected(roles, make_config(algorithm=algorithm, value_warmup=0))
    assert "start values" not in roles.calls
    assert all(len(item.values) == len(item.returns) == 0 for item in rollout.trajectories)
    assert all(len(item.advantages) == len(item.response_ids) for item in rollout.trajectories)


class Broken(FakeRoles):
    """One answer changed on its way back."""

    def __init__(self, method: str, change: Callable[[list], list]) -> None:
        super().__init__()
        self.method, self.change = method, change

    def _call(self, name: str, compute: Callable[[], list]) -> FakePending[list]:
        return super()._call(name, (lambda: self.change(compute())) if name == self.method else compute)


def first(change: Callable[[Generation], Generation]) -> Callable[[list[Generation]], list[Generation]]:
    return lambda samples: [change(samples[0]), *samples[1:]]


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("generate", lambda samples: samples[1:], "do not belong"),
        ("generate", lambda samples: samples[::-1], "do not belong"),
        ("generate", first(lambda s: replace(s, prompt_ids=(1,))), "do not belong"),
        ("generate", first(lambda s: replace(s, response_ids=(), logprobs=())), "sample 0 has no token"),
        ("generate", first(lambda s: replace(s, logprobs=s.logprobs[1:])), "rollout: its numbers do not match"),
        (
            "generate",
            first(lambda s: replace(s, logprobs=(math.nan,) * len(s.logprobs))),
            "rollout: a number of sample 0",
        ),
        ("policy_logprobs", lambda rows: [rows[0][1:], *rows[1:]], "policy: its numbers do not match"),
        ("reference_logprobs", lambda rows: rows[1:], "reference: its numbers do not match"),
        ("values", lambda rows: [*rows[:-1], [math.nan] * len(rows[-1])], "value: a number of sample 7"),
        ("values", lambda rows: [row[:-1] for row in rows], "value: its numbers do not match"),
        ("scores", lambda scores: scores[1:], "reward: 7 scores for 8"),
        ("scores", lambda scores: [scores[0], math.inf, *scores[2:]], "reward: the score of sample 1"),
    ],
)
def test_answers_that_do_not_fit_are_refused(method: str, change: Callable[[list], list], message: str) -> None:
    with pytest.raises(CaiError, match=message):
        collected(Broken(method, change))


def test_samples_of_old_weights_are_refused() -> None:
    with pytest.raises(StaleEngineError, match="sample 0 comes from weight version 7, the policy is at 0"):
        collected(Broken("generate", first(lambda s: replace(s, weight_version=7))))


def test_the_sampler_is_asked_as_configured() -> None:
    seen: list[tuple[SamplingParams, int]] = []

    class Spy(FakeRoles):
        def generate(self, prompts: list[tuple[int, ...]], sampling: SamplingParams, seed: int) -> FakeParts:
            seen.append((sampling, seed))
            return super().generate(prompts, sampling, seed)

    config = make_config(sampling=SamplingConfig(max_new_tokens=6, temperature=0.7, top_p=0.9))
    roles = Spy()
    roles.sync_weights(0)
    for iteration in range(3):
        state = replace(PpoState.start(config), iteration=iteration)
        collect(roles, make_prompts(7, 3), config, (STOP,), state, 3)
    assert {sampling for sampling, _ in seen} == {SamplingParams(6, temperature=0.7, top_p=0.9, stop_ids=(STOP,))}
    assert len({seed for _, seed in seen}) == 3, "each iteration draws with a seed of its own"
