"""Rows 6, 7, 8, 9, 24 and 26: the real workers on a plain engine in place of DeepSpeed's. However a batch is cut into
ranks and micro-batches, empty ones too, the gradients add up to those of the whole batch, in every parameter."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cai_dist.config.ppo import PpoConfig
from cai_dist.config.training import OptimizerConfig, ShardingConfig
from cai_dist.data.batches import loss_weight
from cai_dist.data.schedule import plan_items, token_count
from cai_dist.engines.protocols.training import LossFn, Model
from cai_dist.losses.policy import PolicyObjective
from cai_dist.types import (
    Generation,
    RankInfo,
    StepShard,
)
from cai_dist.workers.base import TrainedWorker
from cai_dist.workers.dpo import DpoWorker
from cai_dist.workers.language import LanguageWorker
from cai_dist.workers.policy import PolicyWorker
from cai_dist.workers.preference import PreferenceWorker
from cai_dist.workers.rating import RatingWorker
from cai_dist.workers.value import ValueWorker
from tests.examples import dpo_pairs, pairs, rated, response_tokens, sequences, trajectories
from tests.ids import prompt_of, response_of
from tests.tiny import save_llama

Gradients = dict[str, Tensor]
NAMES = ("language", "preference", "policy", "plain policy", "value", "dpo", "rating")


class PlainEngine:
    """Adds gradients up and never steps; one after the other it can be every rank of a group."""

    def __init__(self, model: Any, *args: object) -> None:
        self.model, self.device, self.steps, self.passes = model, torch.device("cpu"), 0, 0

    def step(self, micro_batches: Sequence[Any], loss_fn: LossFn[Any], denominator: float) -> dict[str, float]:
        sums: dict[str, float] = {"loss": 0.0}
        for micro_batch in micro_batches:
            loss, metrics = loss_fn(self.model, micro_batch, denominator)
            loss.backward()
            self.passes += 1
            for name, number in metrics.items():
                sums[name] = sums.get(name, 0.0) + number.item()
        # A rank's own sums; a rank without a token must not divide by their number.
        return sums | {"tokens": max(1.0, sums.get("tokens", 1.0))}

    def infer(self, micro_batches: Sequence[Any], fn: Callable[[Model, Any], Any]) -> list[Any]:
        with torch.no_grad():
            return [fn(self.model, micro_batch) for micro_batch in micro_batches]


@dataclass(frozen=True)
class Case:
    """A worker with what it is trained on."""

    worker: TrainedWorker
    items: Callable[[random.Random, int], list[Any]]
    denominator: Callable[[Sequence[Any]], float]
    arguments: tuple[float | None, ...] = ()
    """Of `train_step` besides the shard."""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = save_llama(tmp_path_factory.mktemp("model"), tied=False, seed=3, layers=1)
    objective = PolicyObjective(0.2, clip_high=0.3, dual_clip=3.0, kl="k3", entropy=0.05)

    def worker(kind: type[TrainedWorker], **kwargs: object) -> TrainedWorker:
        return kind(
            RankInfo("test", 0, 1), model=folder, dtype="fp32", optimizer=OptimizerConfig(),
            sharding=ShardingConfig(), total_steps=1, **kwargs,
        )  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cai_dist.engines.training.deepspeed_engine.DeepSpeedEngine", PlainEngine)
        patch.setattr("cai_dist.workers.base.init_process_group", lambda *args: None)
        asked = {"temperature": 0.7, "ppo": PpoConfig()}
        return {
            "language": Case(worker(LanguageWorker), sequences, loss_weight),
            "preference": Case(worker(PreferenceWorker), pairs, len),
            "rating": Case(worker(RatingWorker), rated, len),
            "policy": Case(
                worker(PolicyWorker, objective=objective, **asked),
                trajectories,
                response_tokens,
                (0.2, None),
            ),
            "plain policy": Case(
                worker(PolicyWorker, objective=PolicyObjective(0.2), **asked),
                trajectories,
                response_tokens,
                (0.2, None),
            ),
            "policy with k2": Case(
                worker(PolicyWorker, objective=PolicyObjective(0.2, kl="k2"), **asked),
                trajectories,
                response_tokens,
            ),
            "value": Case(worker(ValueWorker, value_clip=0.2), trajectories, response_tokens),
            "dpo": Case(worker(DpoWorker, loss="dpo", beta=0.3), dpo_pairs, len),
        }


def gradients(
    case: Case, items: Sequence[Any], ranks: int, sharding: ShardingConfig
) -> tuple[float, Gradients, set[int]]:
    """Loss and gradients added up over all ranks, and how many passes each rank made."""
    engine: Any = case.worker.engine
    engine.model.zero_grad()
    loss, passes = 0.0, set()
    for micro_batches in plan_items(items, ranks, sharding, "packed").split(items):
        before = engine.passes
        shard = StepShard(micro_batches, case.denominator(items))
        loss += case.worker.train_step(shard, *case.arguments)["loss"]  # type: ignore[attr-defined]
        passes.add(engine.passes - before)
    named = engine.model.hf.named_parameters()
    return loss, {name: p.grad.clone() for name, p in named if p.grad is not None}, passes


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, derandomize=True)
@given(
    count=st.integers(1, 9),
    ranks=st.integers(1, 8),
    micro_batch=st.integers(1, 4),
    spare=st.none() | st.integers(0, 40),
    seed=st.integers(0, 10**6),
)
def test_gradients_add_up_to_those_of_the_whole_batch(
    cases: dict[str, Case], name: str, count: int, ranks: int, micro_batch: int, spare: int | None, seed: int
) -> None:
    """Cut by their number, or under a cap of the longest item's tokens and some to spare."""
    case = cases[name]
    items = case.items(random.Random(seed), count)
    cap = None if spare is None else max(map(token_count, items)) + spare
    sharding = ShardingConfig(ranks=ranks, micro_batch=micro_batch, max_tokens_per_micro_batch=cap)
    loss, found, passes = gradients(case, items, ranks, sharding)
    expected_loss, expected, _ = gradients(case, items, 1, ShardingConfig(ranks=1, micro_batch=count))
    assert loss == pytest.approx(expected_loss, rel=1e-5, abs=1e-6)
    assert len(passes) == 1, "every rank makes as many passes"
    assert found.keys() == expected.keys()
    for parameter, gradient in found.items():
        distance = (gradient - expected[parameter]).norm()
        assert distance <= 2e-5 * expected[parameter].norm() + 1e-7, parameter


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_moved(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    _, found, _ = gradients(case, case.items(random.Random(1), 6), 2, ShardingConfig(ranks=2, micro_batch=2))
    names = [parameter for parameter, _ in case.worker.engine.model.hf.named_parameters()]  # type: ignore[attr-defined]
    assert [p for p in names if p not in found or found[p].abs().max() < 1e-7] == []


@pytest.mark.parametrize("name", ["policy", "plain policy"])
def test_the_policy_is_trained_at_the_temperature_that_it_is_asked_at(cases: dict[str, Case], name: str) -> None:
    """At the log-probabilities that it reports itself the ratio is 1. Entropies are worked out in the first case."""
    worker: Any = cases[name].worker
    items = trajectories(random.Random(2), 5)
    samples = [Generation(prompt_of(i), response_of(i), i.sampler_logprobs, "stop", 0) for i in items]
    for temperature, is_one in ((0.7, True), (1.0, False)):
        rows = worker.logprobs(StepShard((tuple(samples),)), temperature).rows
        same = [replace(item, old_logprobs=tuple(row)) for item, row in zip(items, rows, strict=True)]
        metrics = worker.train_step(StepShard((tuple(same),), response_tokens(same)), 0.0, None)
        assert (metrics["ratio_deviation"] < 1e-9) == is_one


@pytest.mark.parametrize("beta", [0.05, 0.7])
def test_the_policy_loss_is_the_sum_by_hand_of_what_the_trajectories_say(cases: dict[str, Case], beta: float) -> None:
    """Old and reference log-probabilities, advantages, weights and beta are all different: none can stand in another's
    place."""
    worker: Any = cases["policy with k2"].worker
    items = trajectories(random.Random(5), 4)
    samples = [Generation(prompt_of(i), response_of(i), i.sampler_logprobs, "stop", 0) for i in items]
    expected = 0.0
    for item, row in zip(items, worker.logprobs(StepShard((tuple(samples),)), 0.7).rows, strict=True):
        columns = (row, item.old_logprobs, item.ref_logprobs, item.advantages, item.weights)
        for logprob, old, reference, advantage, weight in zip(*columns, strict=True):
            ratio = math.exp(logprob - old)
            surrogate = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
            expected += weight * (-surrogate + beta * (logprob - reference) ** 2 / 2) / 7.0
    shard = StepShard((tuple(items[:3]), tuple(items[3:])), 7.0)
    assert worker.train_step(shard, beta, None)["loss"] == pytest.approx(expected, rel=1e-4)
