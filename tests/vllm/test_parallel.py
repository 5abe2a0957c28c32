"""vLLM engines of several processes, and mixtures of experts: new weights arrive in every part of the model."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.engine import EngineConfig, VllmConfig
from cai_dist.engines.factory import build_rollout_engine
from cai_dist.errors import StaleEngineError, WeightTransferError
from cai_dist.types import GenerateRequest, SamplingParams
from tests.ids import response_of
from tests.vllm.lab import END, random_prompts, save_model, saved, transfer, worst

PROMPTS = random_prompts(24)
GREEDY = GenerateRequest(PROMPTS, SamplingParams(12, 0.0, 1.0, (END,)), seed=0)


def engine_of(**split: Any) -> Any:
    return build_rollout_engine(EngineConfig(backend="vllm", vllm=VllmConfig(kv_cache_gb=0.05, **split)), "fp32")


def send(engine: Any, folder: str, version: int) -> None:
    manifest, buckets = transfer(folder)
    engine.begin_weights(version, manifest)
    for bucket in buckets:
        engine.accept_weights(bucket)
    engine.finish_weights(version)


def answers(engine: Any) -> list[tuple[int, ...]]:
    return [response_of(sample) for sample in engine.generate(GREEDY)]


def of_transformers(folder: str) -> list[tuple[int, ...]]:
    engine = build_rollout_engine(EngineConfig(), "fp32")
    engine.load(folder)
    return answers(engine)


@pytest.mark.parametrize(
    ("kind", "split"),
    [
        ("qwen3_moe", {}),
        ("mixtral", {}),
        ("tied", {"tensor_parallel": 2}),
        ("mixtral", {"tensor_parallel": 2}),
        ("untied", {"pipeline_parallel": 2}),
    ],
    ids=["qwen3_moe", "mixtral", "tied, tp 2", "mixtral, tp 2", "pp 2"],
)
def test_new_weights_arrive_whole(kind: str, split: dict[str, int], tmp_path: Path) -> None:
    """Greedy answers are those of transformers before a transfer, after it, and after the next."""
    folders = [saved(kind, tmp_path / str(seed), seed) for seed in (0, 1)]
    expected = [of_transformers(folder) for folder in folders]
    engine = engine_of(**split)
    engine.load(folders[0])
    try:
        assert answers(engine) == expected[0]
        for version, model in ((1, 1), (2, 0)):
            send(engine, folders[model], version)
            assert answers(engine) == expected[model]
        sampled = engine.generate(replace(GREEDY, sampling=SamplingParams(12, 1.0, 0.9, (END,)), seed=5))
        assert worst(folders[0], sampled, 1.0, 0.9) < 1e-4
    finally:
        engine._stop()
    assert expected[0] != expected[1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str, str]]:
    """An engine of two processes, the model that it was loaded with and another of that shape."""
    first, second = (save_model(tmp_path_factory.mktemp("model"), tied=False, seed=seed) for seed in (0, 1))
    engine = engine_of(tensor_parallel=2)
    engine.load(first)
    yield engine, first, second
    engine._stop()


def test_a_broken_transfer_leaves_all_parts_stale(pair: tuple[Any, str, str]) -> None:
    engine, first, second = pair
    manifest, buckets = transfer(second)
    engine.begin_weights(3, manifest)
    engine.accept_weights(buckets[0])
    with pytest.raises(WeightTransferError, match="tensors never came"):
        engine.finish_weights(3)
    with pytest.raises(StaleEngineError):
        engine.generate(GREEDY)
    send(engine, second, 4)
    assert answers(engine) == of_transformers(second)
    send(engine, first, 5)
    assert answers(engine) == of_transformers(first)


def test_memory_of_a_transfer_is_given_back(pair: tuple[Any, str, str]) -> None:
    engine, first, _ = pair
    before = os.statvfs("/dev/shm").f_bavail
    for version in range(6, 10):
        send(engine, first, version)
    spent = (before - os.statvfs("/dev/shm").f_bavail) * os.statvfs("/dev/shm").f_frsize
    assert spent < 200_000  # one copy of the model is 360 kB


def test_an_engine_that_loses_a_process_ends_soon_and_says_so(pair: tuple[Any, str, str]) -> None:
    engine, first, _ = pair
    executor = engine._llm.llm_engine.engine_core.engine_core.model_executor
    os.kill(executor.workers[1].proc.pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(Exception, match=r"(?i)executor|worker|engine|died|cancel"):
        for _ in range(100):
            engine.generate(GREEDY)
    assert time.monotonic() - began < 60
    engine.load(first)
    assert answers(engine) == of_transformers(first)
