"""Weights from policy to rollout on one GPU, by each backend; with two GPUs also by NCCL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cai_dist.cluster.group import WorkerGroup
from cai_dist.cluster.ppo.weight_transfer import WeightTransfer
from cai_dist.cluster.runtime import Cluster, GroupSpec
from cai_dist.config.ppo import PpoConfig, TransferBackend
from cai_dist.config.training import Dtype, LoraConfig, ShardingConfig
from cai_dist.errors import CaiError, ConfigError
from cai_dist.losses.policy import PolicyObjective
from cai_dist.types import GenerateRequest, Generation, SamplingParams, TensorSpec, WorkerSpec
from cai_dist.weight_sync.segments import SegmentSender
from tests.gpu.conftest import TIMEOUTS, skip_where_unshared
from tests.ids import response_of
from tests.integration.train_bench import OPTIMIZER, TOTAL_STEPS
from tests.tiny import END, save_llama

REQUEST = GenerateRequest(((5, 6, 7), (8,), (9, 4)), SamplingParams(8, 0.0, 1.0, (END,)), 0)
ON_ONE: tuple[TransferBackend, ...] = ("object_store", "shared_memory", "cuda_ipc")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("source"), tied=True, seed=1)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("other"), tied=True, seed=2)


def pair(
    cluster: Cluster, source: str, other: str, *, zero: int = 1, dtype: Dtype = "bf16", workers: int = 1,
    share: str = "policy", lora: LoraConfig | None = None,
) -> dict[str, WorkerGroup]:  # fmt: skip
    """Policy ranks with the model in `source`, rollout workers with the architecture in `other`, both awake."""
    policy: dict[str, Any] = {
        "model": source, "dtype": dtype, "optimizer": OPTIMIZER, "total_steps": TOTAL_STEPS, "lora": lora,
        "sharding": ShardingConfig(ranks=workers, zero=zero, micro_batch=1), "timeouts": TIMEOUTS,  # type: ignore[arg-type]
        "objective": PolicyObjective(clip=0.2), "temperature": 1.0, "ppo": PpoConfig(),
    }  # fmt: skip
    rollout = {"model": other, "dtype": dtype, "require_sync": True}
    specs = [
        GroupSpec("policy", WorkerSpec("policy", policy), workers, 0.1, 1.0, True, share=share),
        GroupSpec("rollout", WorkerSpec("rollout", rollout), workers, 0.1, 1.0, share=share),
    ]
    made = cluster.launch(specs)
    for group in made.values():
        group.broadcast("wake", "keep_on_device", ("weights",))
    return made


def close(groups: dict[str, WorkerGroup]) -> None:
    for group in groups.values():
        group.close()


def run(sending: WeightTransfer, version: int) -> dict[str, float]:
    try:
        return sending.run(version)
    except CaiError as error:
        skip_where_unshared(error)
        raise


def answers(group: WorkerGroup) -> list[list[Generation]]:
    return group.broadcast("generate", "generate", REQUEST)


def expected(cluster: Cluster, source: str, dtype: Dtype) -> list[tuple[int, ...]]:
    """What an engine answers that has loaded the model itself."""
    kwargs = {"model": source, "dtype": dtype}
    plain = cluster.launch([GroupSpec("plain", WorkerSpec("rollout", kwargs), 1, 0.1, 1.0)])
    try:
        return [response_of(one) for one in answers(plain["plain"])[0]]
    finally:
        close(plain)


@pytest.fixture(scope="module")
def told(cluster: Cluster, source: str) -> list[tuple[int, ...]]:
    return expected(cluster, source, "bf16")


@pytest.fixture(scope="class")
def groups(cluster: Cluster, source: str, other: str, told: list[tuple[int, ...]]) -> Iterator[dict[str, WorkerGroup]]:
    made = pair(cluster, source, other)
    yield made
    close(made)


class TestOnePair:
    """Policy and rollout on one GPU, which they leave to the next tests."""

    @pytest.mark.parametrize("backend", ON_ONE)
    def test_both_have_the_same_weights(
        self, groups: dict[str, WorkerGroup], told: list[tuple[int, ...]], backend: TransferBackend
    ) -> None:
        sending = WeightTransfer(groups["policy"], groups["rollout"], backend, 20_000, 20.0)
        for version in (3, 4):
            run(sending, version)
            (served,) = answers(groups["rollout"])
            assert [response_of(one) for one in served] == told
            assert {one.weight_version for one in served} == {version}

    def test_nothing_of_a_loan_stays_on_the_gpu(self, groups: dict[str, WorkerGroup]) -> None:
        sending = WeightTransfer(groups["policy"], groups["rollout"], "cuda_ipc", 20_000, 20.0)
        run(sending, 5)
        before = [group.broadcast("memory", "memory")[0] for group in groups.values()]
        for version in range(6, 10):
            run(sending, version)
        after = [group.broadcast("memory", "memory")[0] for group in groups.values()]
        for one, other in zip(before, after, strict=True):
            assert other["gpu_mb"] == pytest.approx(one["gpu_mb"], abs=0.01)
        assert after[0]["gpu_peak_mb"] > after[0]["gpu_mb"], "the segment was there, and is not any more"

    def test_an_engine_that_took_another_backends_weights_takes_these(self, groups: dict[str, WorkerGroup]) -> None:
        found = []
        for version, backend in enumerate((*ON_ONE, *ON_ONE), start=20):
            run(WeightTransfer(groups["policy"], groups["rollout"], backend, 2**24, 20.0), version)
            found.append([response_of(one) for one in answers(groups["rollout"])[0]])
        assert all(one == found[0] for one in found)


@pytest.mark.parametrize(("zero", "dtype"), [(0, "fp32"), (3, "fp32"), (3, "bf16")])
def test_every_zero_stage_lends_its_weights(cluster: Cluster, source: str, other: str, zero: int, dtype: Dtype) -> None:
    answer = expected(cluster, source, dtype)
    made = pair(cluster, source, other, zero=zero, dtype=dtype)
    try:
        run(WeightTransfer(made["policy"], made["rollout"], "cuda_ipc", 20_000, 20.0), 1)
        assert [response_of(one) for one in answers(made["rollout"])[0]] == answer
    finally:
        close(made)


def test_an_adapter_travels_alone_on_the_gpu_too(cluster: Cluster, source: str, other: str) -> None:
    made = pair(cluster, source, other, dtype="fp32", lora=LoraConfig(rank=2, alpha=4.0))
    try:
        sending = WeightTransfer(made["policy"], made["rollout"], "cuda_ipc", 50_000, 20.0)
        first, second = (run(sending, version)["bytes"] for version in (1, 2))
        assert second == 4 * 2 * sum((64 + 64) * 4 + (64 + 96) * 3 for _ in range(2)) < first
    finally:
        close(made)


def test_memory_that_grows_in_place_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    buckets = ((TensorSpec("a", (4,), "float32", 16),),)
    with pytest.raises(ConfigError, match="ppo.transfer=cuda_ipc: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"):
        SegmentSender(buckets, on_gpu=True)


@two_gpus
@pytest.mark.parametrize("zero", [1, 3])
def test_each_engine_takes_its_weights_on_its_own_gpu(
    cluster: Cluster, source: str, other: str, told: list[tuple[int, ...]], zero: int
) -> None:
    made = pair(cluster, source, other, zero=zero, workers=2)
    try:
        run(WeightTransfer(made["policy"], made["rollout"], "cuda_ipc", 20_000, 20.0), 1)
        for served in answers(made["rollout"]):
            assert [response_of(one) for one in served] == told
    finally:
        close(made)


@two_gpus
def test_a_broadcast_goes_over_nccl(cluster: Cluster, source: str, other: str, told: list[tuple[int, ...]]) -> None:
    made = pair(cluster, source, other, share="")
    try:
        sending = WeightTransfer(made["policy"], made["rollout"], "broadcast", 20_000, 20.0)
        for version in (1, 2):
            sending.run(version)
            assert [response_of(one) for one in answers(made["rollout"])[0]] == told
    finally:
        close(made)
