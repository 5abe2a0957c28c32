"""vLLM engines of several processes, and mixtures of experts: new weights arrive in every part of the model."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.engine import EngineConfig, VllmConfig
from cai_dist.engines.factory import build_rollout_engine
from cai_dist.errors import CaiError, StaleEngineError, WeightTransferError
from cai_dist.types import GenerateRequest, SamplingParams
from tests.ids import response_of
from tests.vllm.lab import END, random_prompts, save_model, saved, send, transfer, worst

PROMPTS = random_prompts(24)
GREEDY = GenerateRequest(PROMPTS, SamplingParams(12, 0.0, 1.0, (END,)), seed=0)


def engine_of(**split: Any) -> Any:
    return build_rollout_engine(EngineConfig(backend="vllm", vllm=VllmConfig(kv_cache_gb=0.05, **split)), "fp32")


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


def segments_mapped(engine: Any) -> int:
    """Nameless segments of /dev/shm that this process or those of the engine still map."""
    processes = [worker.proc.pid for worker in executor_of(engine).workers]
    maps = [Path(f"/proc/{pid}/maps").read_text(encoding="utf-8") for pid in (os.getpid(), *processes)]
    return sum("/dev/shm/#" in line for one in maps for line in one.splitlines())


def executor_of(engine: Any) -> Any:
    return engine._llm.llm_engine.engine_core.engine_core.model_executor


def test_memory_of_a_transfer_is_given_back(pair: tuple[Any, str, str]) -> None:
    engine, first, _ = pair
    send(engine, first, 6)
    before = segments_mapped(engine)
    for version in range(7, 10):
        send(engine, first, version)
    assert segments_mapped(engine) <= before < len(transfer(first)[1])


def test_an_engine_that_loses_a_process_ends_and_says_so(pair: tuple[Any, str, str]) -> None:
    engine, first, _ = pair
    os.kill(executor_of(engine).workers[1].proc.pid, signal.SIGKILL)
    raised: list[Exception] = []

    def ask() -> None:
        try:
            while True:
                engine.generate(GREEDY)
        except Exception as error:
            raised.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout=300)
    assert [type(error) for error in raised] == [CaiError]
    assert re.search("engine of 2 vLLM processes cannot go on.*; it is ended", str(raised[0]))
    assert engine.status() == "empty" and len(str(raised[0]).splitlines()) == 1
    engine.load(first)
    assert answers(engine) == of_transformers(first)
