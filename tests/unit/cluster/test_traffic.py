"""What the driver sends and how often it asks: as much as is needed, at any number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ray.exceptions import RayTaskError

from cai_dist.cluster import wait
from cai_dist.cluster.ppo_groups import needed_for
from cai_dist.cluster.wait import Call, Pending, gather
from cai_dist.config.ppo import PpoConfig
from cai_dist.data.batches import TrajectoryBatch, trajectory_batch
from cai_dist.errors import WorkerError, WorkerTimeout
from cai_dist.losses.policy import PolicyObjective, policy_loss
from cai_dist.losses.value import value_loss
from cai_dist.types import Trajectory

LISTS = ("old_logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns", "sampler_logprobs", "weights")


def trajectories() -> list[Trajectory]:
    """Ragged, every list with numbers of its own."""
    generator = torch.Generator().manual_seed(5)

    def numbers(length: int) -> dict[str, Any]:
        return {name: tuple(torch.randn(length, generator=generator).tolist()) for name in LISTS}

    return [
        Trajectory((1,) * n, (2,) * n, score=0.5, finish="stop", weight_version=3, versions=(3,) * n, **numbers(n))
        for n in (1, 4, 2)
    ]


def policy(batch: TrajectoryBatch, kl: Any) -> torch.Tensor:
    """Gradient of the policy's loss."""
    logprobs = torch.linspace(-2, -1, batch.tokens.ids.shape[0]).requires_grad_()
    mask = batch.tokens.response_mask
    loss, _ = policy_loss(
        logprobs, batch.old_logprobs, batch.advantages, batch.weights, mask, 7.0, PolicyObjective(0.2, kl=kl),
        ref_logprobs=batch.ref_logprobs, kl_coefficient=0.3,
    )  # fmt: skip
    return torch.autograd.grad(loss, logprobs)[0]


def value(batch: TrajectoryBatch) -> torch.Tensor:
    """Gradient of the value model's loss."""
    values = torch.linspace(-2, -1, batch.tokens.ids.shape[0]).requires_grad_()
    loss, _ = value_loss(values, batch.old_values, batch.returns, batch.tokens.response_mask, 0.2, 7.0)
    return torch.autograd.grad(loss, values)[0]


@pytest.mark.parametrize("where", ["reward", "loss"])
def test_what_is_not_sent_changes_no_bit_of_a_gradient(where: str) -> None:
    config = PpoConfig.model_validate({"kl": {"where": where}})
    kl = config.kl_estimator if where == "loss" else None
    whole = trajectory_batch(trajectories())
    for_policy = trajectory_batch(needed_for("policy", trajectories(), config))
    for_value = trajectory_batch(needed_for("value", trajectories(), config))
    assert policy(for_policy, kl).equal(policy(whole, kl)) and policy(whole, kl).abs().sum() > 0
    assert value(for_value).equal(value(whole)) and value(whole).abs().sum() > 0


def test_nothing_is_sent_that_is_not_read() -> None:
    def sent(role: str, where: str) -> set[str]:
        (item, *_) = needed_for(role, trajectories(), PpoConfig.model_validate({"kl": {"where": where}}))
        return {name for name in (*LISTS, "versions") if getattr(item, name)}

    assert sent("policy", "reward") == {"old_logprobs", "advantages", "weights"}
    assert sent("policy", "loss") == {"old_logprobs", "advantages", "weights", "ref_logprobs"}
    assert sent("value", "reward") == sent("value", "loss") == {"values", "returns"}


class FakeRay:
    """`ready[i]`: references that have ended by the i-th question that waits; counts references looked at."""

    def __init__(self, *ready: set[int], failing: int = -1) -> None:
        self._ready, self._failing, self.looks = list(ready), failing, 0
        self._now: set[int] = set()

    def wait(self, refs: Sequence[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        self.looks += len(refs)
        if timeout and self._ready:
            self._now |= self._ready.pop(0)
        found = [ref for ref in reversed(refs) if ref in self._now][:num_returns]
        return found, [ref for ref in refs if ref not in found]

    def get(self, ref: int) -> int:
        if ref == self._failing:
            raise RayTaskError("f", "traceback", ValueError("broken"))
        return 10 * ref


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeRay) -> None:
    monkeypatch.setattr(wait.ray, "wait", fake.wait)
    monkeypatch.setattr(wait.ray, "get", fake.get)


def calls(n: int) -> list[Call]:
    return [Call(ref, "update", "policy", ref, "here") for ref in range(n)]


def test_answers_come_in_order_whoever_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeRay({2}, {0, 3}, {1}))
    assert gather(calls(4), 9.0) == [0, 10, 20, 30]
    use(monkeypatch, FakeRay({2}, {0, 3}, {1}))
    each = list(Pending(calls(4), 9.0, list).each())
    assert each == [(2, 20), (0, 0), (3, 30), (1, 10)]


def test_a_thousand_answers_are_not_half_a_million_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(set(range(500)), set(range(1000)))
    use(monkeypatch, fake)
    assert gather(calls(1000), 9.0) == [10 * ref for ref in range(1000)]
    assert fake.looks == 2 * 1000 + 2 * 500


def test_the_first_error_is_raised_while_others_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeRay({1, 2}, failing=2))
    with pytest.raises(WorkerError, match="broken") as caught:
        gather(calls(4), 9.0)
    assert caught.value.rank == 2


def test_no_answer_in_time_names_the_ranks_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeRay({0, 2}))
    with pytest.raises(WorkerTimeout, match="rank 1, 3"):
        gather(calls(4), 9.0)
