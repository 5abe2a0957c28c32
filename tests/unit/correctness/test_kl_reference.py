"""Row 11: estimators, rewards and losses against the KL summed over every sequence of a vocabulary of three tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cai_dist.coordinator.rollout_phase import Rollout
from cai_dist.coordinator.state import PpoState
from cai_dist.losses.kl import ESTIMATORS, k1, k3
from cai_dist.losses.policy import PolicyObjective, policy_loss
from cai_dist.types import Generation, SampleRef, SamplingParams
from tests.fakes import FakeParts, FakePending, FakeRoles, collect
from tests.unit.coordinator.small_run import STOP, make_config, make_prompts
from tests.unit.correctness.references import exact_kl, sequences

V, T = 3, 3
ALL = sequences(V, T)
BETA = 0.3


def tables(seed: int) -> Tensor:
    """Logits [1 + V, V]: of the first token, and of the next given the one before."""
    return torch.randn(1 + V, V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


POLICY, REFERENCE = tables(1), tables(2)
SCORES = torch.randn(len(ALL), dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def token_logprobs(table: Tensor) -> Tensor:
    """[sequences, T] log-probability of each token of every sequence."""
    logp = torch.log_softmax(table, dim=-1)
    rows = torch.tensor([[0, *(1 + token for token in ids[:-1])] for ids in ALL])
    return logp[rows, torch.tensor(ALL)]


def kl_between(one: Tensor, other: Tensor) -> Tensor:
    """KL between two models over whole sequences, with its graph."""
    p, q = token_logprobs(one).sum(1), token_logprobs(other).sum(1)
    return (p.exp() * (p - q)).sum()


class Enumerated(FakeRoles):
    """The "samples" are all sequences, one for each prompt that is asked."""

    def generate(self, prompts: Sequence[tuple[int, ...]], sampling: SamplingParams, seed: int) -> FakeParts:
        rows = token_logprobs(POLICY).tolist()
        made = [
            Generation(prompt, ids, tuple(row), "stop", 0) for prompt, ids, row in zip(prompts, ALL, rows, strict=True)
        ]
        return self.sampled(prompts, self._call("generate", lambda: made))

    def policy_logprobs(self, samples: Sequence[SampleRef], temperature: float) -> FakePending[list[Any]]:
        return self.kept("policy", samples, "policy", lambda _: token_logprobs(POLICY).tolist())

    def reference_logprobs(self, samples: Sequence[SampleRef], temperature: float) -> FakePending[list[Any]]:
        return self.kept("reference", samples, "reference", lambda _: token_logprobs(REFERENCE).tolist())

    def scores(self, samples: Sequence[SampleRef]) -> FakePending[list[float]]:
        return self._call("scores", SCORES.tolist)


def collected(**kl: object) -> Rollout:
    config = make_config(
        prompts_per_iteration=len(ALL), samples_per_prompt=1, mini_batch=len(ALL), kl={"coefficient": BETA, **kl},
        policy={"ranks": 1, "micro_batch": len(ALL)}, value={"ranks": 1, "micro_batch": 1}, helpful_fraction=0.0,
    )  # fmt: skip
    roles = Enumerated()
    roles.sync_weights(0)
    return collect(roles, make_prompts(len(ALL), 1), config, (STOP,), PpoState.start(config), 0)


def mean(numbers: Sequence[float]) -> float:
    """Expectation under the policy of one number a sequence."""
    chances = token_logprobs(POLICY).sum(1).exp().tolist()
    return math.fsum(chance * number for chance, number in zip(chances, numbers, strict=True))


def test_the_reference_itself() -> None:
    """All sequences together have probability 1, and the KL of sequences is the sum of the KLs of their steps."""
    p, q = (token_logprobs(table).sum(1).tolist() for table in (POLICY, REFERENCE))
    assert math.fsum(map(math.exp, p)) == pytest.approx(1.0)
    logp, logq = (torch.log_softmax(table, -1).tolist() for table in (POLICY, REFERENCE))
    chain, state = 0.0, [1.0, *[0.0] * V]
    for _ in range(T):
        chain += sum(state[row] * exact_kl(logp[row], logq[row]) for row in range(1 + V))
        state = [0.0, *(sum(state[row] * math.exp(logp[row][token]) for row in range(1 + V)) for token in range(V))]
    assert exact_kl(p, q) == pytest.approx(chain) and chain > 0.3


@pytest.mark.parametrize("estimator", [k1, k3])
def test_estimators_summed_over_tokens_average_to_the_kl(estimator: Callable[[Tensor], Tensor]) -> None:
    estimates = estimator(token_logprobs(POLICY) - token_logprobs(REFERENCE)).sum(1).tolist()
    assert mean(estimates) == pytest.approx(float(kl_between(POLICY, REFERENCE)))


def test_the_mean_reward_is_the_mean_score_minus_beta_times_the_kl() -> None:
    rollout = collected()
    totals = [math.fsum(item.rewards) for item in rollout.trajectories]
    assert mean(totals) == pytest.approx(mean(SCORES.tolist()) - BETA * float(kl_between(POLICY, REFERENCE)))


def test_learning_from_the_reward_follows_the_gradient_of_score_minus_beta_times_kl() -> None:
    """Sum over all sequences of p x grad log p x reward, as a policy gradient without baseline."""
    totals = torch.tensor([math.fsum(item.rewards) for item in collected().trajectories], dtype=torch.float64)
    table = POLICY.clone().requires_grad_()
    p = token_logprobs(table).sum(1)
    (found,) = torch.autograd.grad((p.exp().detach() * totals * p).sum(), table, retain_graph=True)
    (wanted,) = torch.autograd.grad((p.exp() * SCORES).sum() - BETA * kl_between(table, REFERENCE), table)
    torch.testing.assert_close(found, wanted)


def test_the_reported_kl_is_k1_whatever_the_penalty_uses() -> None:
    log_ratio = token_logprobs(POLICY) - token_logprobs(REFERENCE)
    for where, estimator in (("reward", "k1"), ("reward", "k3"), ("loss", "k2")):
        rollout = collected(where=where, estimator=estimator)
        assert rollout.kl_per_response == pytest.approx(float(log_ratio.sum(1).mean()))


def test_a_kl_in_the_loss_is_not_in_the_reward_too() -> None:
    for item, score in zip(collected(where="loss", estimator="k2").trajectories, SCORES.tolist(), strict=True):
        assert item.rewards == pytest.approx((0.0,) * (T - 1) + (score,))


def loss_gradient(estimator: str) -> Tensor:
    """Expected gradient of the KL term alone: advantages are 0, each sequence weighs as often as it is drawn."""
    table = POLICY.clone().requires_grad_()
    logprobs = token_logprobs(table)
    chances = logprobs.detach().sum(1, keepdim=True).exp().expand_as(logprobs)
    objective = PolicyObjective(0.2, kl=estimator)  # type: ignore[arg-type]
    zero, everything = torch.zeros_like(logprobs), torch.ones_like(logprobs, dtype=torch.bool)
    loss, _ = policy_loss(
        logprobs, logprobs.detach(), zero, chances, everything, 1.0, objective,
        ref_logprobs=token_logprobs(REFERENCE), kl_coefficient=BETA,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, table)
    return gradient


def step_kl_gradient(reverse: bool) -> Tensor:
    """Gradient of the summed KL of every step, the states visited as often as the policy does (held fixed)."""
    table = POLICY.clone().requires_grad_()
    logp, logq = torch.log_softmax(table, -1), torch.log_softmax(REFERENCE, -1)
    one, other = (logq, logp) if reverse else (logp, logq)
    steps = (one.exp() * (one - other)).sum(-1)
    visits = torch.zeros(1 + V, dtype=torch.float64)
    for chance, ids in zip(token_logprobs(POLICY).sum(1).exp().tolist(), ALL, strict=True):
        for row in (0, *(1 + token for token in ids[:-1])):
            visits[row] += chance
    (gradient,) = torch.autograd.grad((visits * steps).sum(), table)
    return BETA * gradient


def test_in_the_loss_k2_has_the_gradient_of_the_kl_k3_that_of_the_reverse_and_k1_none() -> None:
    torch.testing.assert_close(loss_gradient("k2"), step_kl_gradient(reverse=False))
    torch.testing.assert_close(loss_gradient("k3"), step_kl_gradient(reverse=True))
    assert loss_gradient("k1").abs().max() < 1e-12
    assert loss_gradient("k2").abs().max() > 1e-3
    assert set(ESTIMATORS) == {"k1", "k2", "k3"}


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("junk", [100.0, math.nan])
def test_the_kl_of_masked_tokens_counts_nowhere(estimator: str, junk: float) -> None:
    mask = torch.tensor([False, True, True, False])
    results = []
    for filling in (0.0, junk):
        logprobs = torch.tensor([filling, -1.0, -2.0, filling], dtype=torch.float64, requires_grad=True)
        reference = torch.tensor([-filling, -1.5, -0.5, -filling], dtype=torch.float64)
        loss, metrics = policy_loss(
            logprobs, torch.zeros(4), torch.zeros(4), torch.ones(4), mask, 2.0,
            PolicyObjective(0.2, kl=estimator),  # type: ignore[arg-type]
            ref_logprobs=reference, kl_coefficient=BETA,
        )  # fmt: skip
        loss.backward()
        assert logprobs.grad is not None
        results.append((loss.item(), metrics["kl"].item(), logprobs.grad.tolist()))
    assert results[0] == results[1] and results[0][2][0] == results[0][2][3] == 0.0
