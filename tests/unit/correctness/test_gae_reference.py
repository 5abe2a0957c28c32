"""Rows 1, 4, 20, 21, 22, 25 and 27: from scores and log-probabilities to advantages, through the whole rollout phase,
against the definitions."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import pytest

from cai_dist.coordinator.state import PpoState
from cai_dist.types import Generation, SampleRef, Trajectory
from tests.fakes import FakePending, FakeRoles, collect
from tests.ids import prompt_of, response_of
from tests.unit.coordinator.small_run import STOP, make_config, make_prompts
from tests.unit.correctness.references import groups, quadratic_gae, returns_to_go, rewards_of, whitened

BETA = 0.1
GROUP = 4


def drawn(what: str, sample: Generation, count: int) -> list[float]:
    """Numbers that depend on the sample alone; at times a whole 0."""
    rng = random.Random(f"{what}/{prompt_of(sample)}/{response_of(sample)}")
    return [rng.choice([0.0, rng.gauss(0, 1), rng.gauss(0, 1)]) for _ in range(count)]


def rows(role: str, samples: Sequence[Generation], more: int = 0) -> list[list[float]]:
    return [drawn(role, sample, len(sample.response_ids) + more) for sample in samples]


class RandomRoles(FakeRoles):
    """Every role answers with numbers without any pattern."""

    def policy_logprobs(self, samples: Sequence[SampleRef], temperature: float) -> FakePending[list[Any]]:
        return self.kept("policy", samples, "policy_logprobs", lambda found: rows("policy", found))

    def reference_logprobs(self, samples: Sequence[SampleRef], temperature: float) -> FakePending[list[Any]]:
        return self.kept("reference", samples, "reference", lambda found: rows("reference", found))

    def values(self, samples: Sequence[SampleRef]) -> FakePending[list[Any]]:
        return self.kept("value", samples, "values", lambda found: rows("value", found, 1), more=1)

    def scores(self, samples: Sequence[SampleRef]) -> FakePending[list[float]]:
        return self._call(
            "scores", lambda: [drawn("score", s, 1)[0] for s in self.fetch([sample.row for sample in samples])]
        )


def rollout(seed: int, **settings: object) -> list[Trajectory]:
    """32 samples of 1 to 6 tokens, finished and cut off."""
    config = make_config(prompts_per_iteration=8, samples_per_prompt=GROUP, **settings)
    roles = RandomRoles()
    roles.sync_weights(0)
    return collect(roles, make_prompts(7, 5), config, (STOP,), PpoState.start(config), seed).trajectories[:]


def rewards(item: Trajectory) -> list[float]:
    kl = [ours - theirs for ours, theirs in zip(item.old_logprobs.tolist(), item.ref_logprobs.tolist(), strict=True)]
    return rewards_of(kl, item.score, BETA)


def after(item: Trajectory) -> float:
    """The value model's number for the state after the last token."""
    sample = Generation(prompt_of(item), response_of(item), (), item.finish, 0)
    return drawn("value", sample, len(item.response_ids) + 1)[-1]


def same(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> None:
    assert [len(row) for row in found] == [len(row) for row in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert list(mine) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.97, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("bootstrap", [True, False])
def test_gae_by_its_definition(seed: int, gamma: float, lam: float, whiten: bool, bootstrap: bool) -> None:
    """A truncated response is followed by V where that is asked for; a finished one never is."""
    items = rollout(seed, gamma=gamma, gae_lambda=lam, whiten_advantages=whiten, bootstrap_truncated=bootstrap)
    assert {item.finish for item in items} == {"stop", "length"} and len({len(item.rewards) for item in items}) > 3
    advantages = []
    for item in items:
        last = after(item) if bootstrap and item.finish == "length" else 0.0
        advantages.append(quadratic_gae(rewards(item), item.values.tolist(), last, gamma, lam))
    same([item.rewards.tolist() for item in items], [rewards(item) for item in items])
    same(
        [item.returns.tolist() for item in items],
        [
            [a + v for a, v in zip(row, item.values.tolist(), strict=True)]
            for row, item in zip(advantages, items, strict=True)
        ],
    )
    same([item.advantages.tolist() for item in items], whitened(advantages) if whiten else advantages)


def test_a_score_of_zero_counts_and_total_reward_is_conserved() -> None:
    items = rollout(0, whiten_advantages=False)
    assert any(item.score == 0.0 for item in items) and any(item.score != 0.0 for item in items)
    for item in items:
        kl = math.fsum(item.old_logprobs) - math.fsum(item.ref_logprobs)
        assert math.fsum(item.rewards) == pytest.approx(item.score - BETA * kl)


def expected_advantages(algorithm: str, items: Sequence[Trajectory], gamma: float) -> list[list[float]]:
    """Each algorithm from its paper, before whitening, with the KL in the reward."""
    totals = [sum(rewards(item)) for item in items]
    if algorithm == "reinforce++":
        return [returns_to_go(rewards(item), gamma) for item in items]
    if algorithm == "reinforce++-group":
        centred = [score - fmean([score, *others]) for score, others in groups([i.score for i in items], GROUP)]
        kls = [[a - b for a, b in zip(i.old_logprobs.tolist(), i.ref_logprobs.tolist(), strict=True)] for i in items]
        return [returns_to_go(rewards_of(kl, score, BETA), gamma) for kl, score in zip(kls, centred, strict=True)]
    one_each = {
        "rloo": lambda total, others: total - fmean(others),
        "grpo": lambda total, others: (total - fmean([total, *others])) / (stdev([total, *others]) + 1e-4),
        "dr-grpo": lambda total, others: total - fmean([total, *others]),
    }[algorithm]
    numbers = [one_each(total, others) for total, others in groups(totals, GROUP)]
    return [[number] * len(item.response_ids) for number, item in zip(numbers, items, strict=True)]


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("algorithm", ["rloo", "reinforce++", "reinforce++-group", "grpo", "dr-grpo"])
def test_the_other_algorithms_by_their_definitions(algorithm: str, whiten: bool) -> None:
    gamma = 0.9 if algorithm.startswith("reinforce") else 1.0
    kl = {"coefficient": BETA, "where": "reward", "estimator": "k1"}
    items = rollout(1, algorithm=algorithm, whiten_advantages=whiten, gamma=gamma, kl=kl, value_warmup=0)
    assert all(len(item.values) == len(item.returns) == 0 for item in items)
    expected = expected_advantages(algorithm, items, gamma)
    same([item.advantages.tolist() for item in items], whitened(expected) if whiten else expected)
