"""Weights on their way: partitions are DeepSpeed's, all backends bring every bit, and nobody serves half a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest

from cai_dist.cluster.futures import gather
from cai_dist.cluster.group import WorkerGroup
from cai_dist.cluster.ppo.weight_transfer import WeightTransfer
from cai_dist.cluster.runtime import Cluster, GroupSpec
from cai_dist.config.ppo import PpoConfig, TransferBackend
from cai_dist.config.training import LoraConfig, ShardingConfig
from cai_dist.errors import WorkerError
from cai_dist.losses.policy import PolicyObjective
from cai_dist.types import GenerateRequest, Generation, SamplingParams, WorkerSpec
from cai_dist.weight_sync.receiver import TransferLedger, whole_tensors
from tests.ids import response_of
from tests.integration.conftest import TIMEOUTS
from tests.integration.train_bench import OPTIMIZER, TOTAL_STEPS, TrainBench
from tests.integration.warm import WarmCluster
from tests.tiny import END, save_llama

REQUEST = GenerateRequest(((5, 6, 7), (8,)), SamplingParams(8, 0.0, 1.0, (END,)), 0)
BACKENDS = [one for one in get_args(TransferBackend) if one != "cuda_ipc"]
"""Those that run without a GPU; tests/gpu has the other."""
PLAIN_ZERO3 = {"sharding": ShardingConfig(ranks=2, zero=3, micro_batch=1)}
"""The packaged configuration: every tensor of these models is below its persistence threshold."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("source"), tied=True, seed=1)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("other"), tied=True, seed=2)


@pytest.fixture(scope="module")
def three(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainBench]:
    spec = WorkerSpec("tests.integration.lab:Bench", {})
    group = cluster.launch([GroupSpec("three", spec, workers=3, cpus=0.1, distributed=True)])["three"]
    yield TrainBench({3: group}, tmp_path_factory.mktemp("three"))
    group.close()


def sent_is_gathered(group: WorkerGroup) -> None:
    ranks = group.broadcast("parts", "raw_and_sent")
    expected, plan, _ = ranks[0]
    assert {spec.name for spec in plan.manifest} == set(expected)
    ledger = TransferLedger(1, plan.manifest)
    for index in range(len(plan.buckets)):
        parts = [sent[index] for _, _, sent in ranks]
        ledger.admit(parts)
        for name, array in whole_tensors(plan.manifest, parts).items():
            assert np.array_equal(array, expected[name]), name
    ledger.finish(1)


@pytest.mark.parametrize("zero", range(4))
def test_two_ranks_send_what_deepspeed_gathers(bench: TrainBench, source: str, zero: int) -> None:
    sent_is_gathered(bench.make("language:LanguageWorker", source, ranks=2, zero=zero, micro_batch=1))


def test_parameters_that_are_persistent_are_sent_too(bench: TrainBench, source: str) -> None:
    sent_is_gathered(bench.make("language:LanguageWorker", source, ranks=2, zero=3, micro_batch=1, **PLAIN_ZERO3))


@pytest.mark.parametrize("zero", [2, 3])
def test_three_ranks_do_so_though_nothing_divides_by_three(three: TrainBench, source: str, zero: int) -> None:
    sent_is_gathered(
        three.make(
            "language:LanguageWorker", source, ranks=3, zero=zero, micro_batch=1, dtype="bf16" if zero == 3 else "fp32"
        )
    )


def policy_spec(model: str, *, zero: int = 3, lora: LoraConfig | None = None) -> GroupSpec:
    kwargs: dict[str, Any] = {
        "model": model, "dtype": "fp32", "optimizer": OPTIMIZER, "total_steps": TOTAL_STEPS, "lora": lora,
        "sharding": ShardingConfig(ranks=2, zero=zero, micro_batch=1), "timeouts": TIMEOUTS,
        "objective": PolicyObjective(clip=0.2), "temperature": 1.0, "ppo": PpoConfig(),
    }  # fmt: skip
    return GroupSpec("policy", WorkerSpec("policy", kwargs), 2, 0.1, distributed=True)


def rollout_spec(model: str, role: str = "rollout", target: str = "", **kwargs: Any) -> GroupSpec:
    spec = WorkerSpec(target or "rollout", {"model": model, "require_sync": True} | kwargs)
    return GroupSpec(role, spec, 2, 0.1)


@pytest.fixture(scope="module")
def groups(cluster: Cluster, source: str, other: str) -> Iterator[dict[str, WorkerGroup]]:
    dying = rollout_spec(other, "dying", "tests.integration.dying:DyingRollout", armed=(1,))
    made = cluster.launch([policy_spec(source), rollout_spec(other), dying])
    yield made
    for group in made.values():
        group.close()


def answers(group: WorkerGroup) -> list[list[Generation]]:
    return group.broadcast("generate", "generate", REQUEST)


def transfer(
    groups: dict[str, WorkerGroup], backend: TransferBackend, bucket: int, to: str = "rollout"
) -> WeightTransfer:
    return WeightTransfer(groups["policy"], groups[to], backend, bucket, 20.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_backends_bring_the_same_model(
    groups: dict[str, WorkerGroup], cluster: Cluster, source: str, backend: TransferBackend
) -> None:
    plain = cluster.launch([rollout_spec(source, "plain", require_sync=False)])["plain"]
    expected = [response_of(one) for one in answers(plain)[0]]
    plain.close()
    sending = transfer(groups, backend, 20_000)
    for version in (3, 4):  # the second time the processes have met
        report = sending.run(version)
        for served in answers(groups["rollout"]):
            assert [response_of(one) for one in served] == expected
            assert {one.weight_version for one in served} == {version}
    many, few = report["calls"], transfer(groups, "object_store", 2**24).run(5)["calls"]
    assert few == 3 * 2 + 1 + 2 + 4, "ask, begin and finish on two, one plan, a probe of two, a bucket of two parts"
    assert many == (few + 4 * 15 if backend == "object_store" else 13), "16 buckets, or one call for each worker"


def test_an_engine_that_dies_in_a_broadcast_leaves_the_others_stale(groups: dict[str, WorkerGroup]) -> None:
    with pytest.raises(WorkerError, match=r"phase weight transfer: dying\[1\].*the worker process died"):
        transfer(groups, "broadcast", 20_000, "dying").run(6)
    status = groups["dying"].call(0, "status", "status")
    assert gather([status], 60.0)[0]["engine"] == "stale"
    assert transfer(groups, "broadcast", 2**24).run(7)["bytes"] > 0, "the senders go on with others"


def test_a_segment_that_nobody_fills_fails_the_transfer_and_the_next_one_has_new_ones(
    groups: dict[str, WorkerGroup],
) -> None:
    sending = transfer(groups, "shared_memory", 20_000)
    sending.run(8)
    plan = gather([groups["policy"].call(0, "plan", "weight_plan", 20_000, [""])], 60.0)[0]
    groups["policy"].broadcast("sabotage", "open_segment", plan)
    with pytest.raises(
        WorkerError, match=r"phase weight transfer: rollout\[.\].*the segment of rank 0 holds version 8"
    ):
        sending.run(9)
    assert {one["engine"] for one in groups["rollout"].broadcast("status", "status")} == {"stale"}
    sending.run(10)
    assert {one.weight_version for served in answers(groups["rollout"]) for one in served} == {10}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_adapter_alone_travels_and_is_merged(
    warm: WarmCluster, source: str, other: str, backend: TransferBackend
) -> None:
    made = warm.launch([policy_spec(source, lora=LoraConfig(rank=2, alpha=4.0)), rollout_spec(other)])
    try:
        sending = transfer(made, backend, 50_000)
        first, second = sending.run(1)["bytes"], sending.run(2)["bytes"]
        assert second == 4 * 2 * sum((64 + 64) * 4 + (64 + 96) * 3 for _ in range(2)), "A and B of two layers"
        assert first == second + 4 * (64 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 96 + 2 * 64) + 64)
    finally:
        for group in made.values():
            group.close()
