"""The Hugging Face engine on a GPU answers as it does on the CPU, and gives its memory back."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from cai_dist.config.engine import EngineConfig
from cai_dist.engines.hf import rollout as hf_rollout
from cai_dist.engines.hf.rollout import HfRolloutEngine
from cai_dist.types import GenerateRequest, LabelRequest, SamplingParams
from cai_dist.workers.memory import take_reading
from tests.ids import prompt_of, response_of
from tests.tiny import END, VOCAB, save_llama

MIB = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("model"), tied=True, seed=1)


@pytest.fixture
def engines(folder: str, monkeypatch: pytest.MonkeyPatch) -> tuple[HfRolloutEngine, HfRolloutEngine]:
    """On the CPU and on the GPU; few rows, so that prompts take the place of finished responses."""
    config = EngineConfig(max_rows=8)
    on_gpu = HfRolloutEngine("fp32", config)
    monkeypatch.setattr(hf_rollout, "worker_device", lambda: torch.device("cpu"))
    on_cpu = HfRolloutEngine("fp32", config)
    for engine in (on_cpu, on_gpu):
        engine.load(folder)
    assert (on_cpu.device.type, on_gpu.device.type) == ("cpu", "cuda")
    return on_cpu, on_gpu


def request(temperature: float) -> GenerateRequest:
    rng = random.Random(0)
    prompts = tuple(tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 20))) for _ in range(64))
    return GenerateRequest(prompts, SamplingParams(24, temperature, 1.0, (END, 9, 15)), 7)


def test_greedy_answers_in_fp32_are_those_of_the_cpu(engines: tuple[HfRolloutEngine, HfRolloutEngine]) -> None:
    here, there = (engine.generate(request(0.0)) for engine in engines)
    assert len({len(one.response_ids) for one in here}) > 1, "rows that end early are part of this test"
    assert sum(response_of(a) == response_of(b) for a, b in zip(here, there, strict=True)) >= 61  # 95 % of 64


def test_samples_and_their_log_probabilities_are_those_of_the_cpu(
    engines: tuple[HfRolloutEngine, HfRolloutEngine],
) -> None:
    here, there = (engine.generate(request(1.0)) for engine in engines)
    same = [(a, b) for a, b in zip(here, there, strict=True) if response_of(a) == response_of(b)]
    assert len(same) >= 58, "a draw may fall between two numbers that round apart"
    for a, b in same:
        assert b.logprobs == pytest.approx(a.logprobs, abs=1e-3)


def test_labels_are_those_of_the_cpu(engines: tuple[HfRolloutEngine, HfRolloutEngine]) -> None:
    asked = LabelRequest(request(0.0).prompts, ((5,), (6, 7), (6, 8)))
    here, there = (engine.score_labels(asked) for engine in engines)
    for a, b in zip(here, there, strict=True):
        assert b == pytest.approx(a, abs=1e-3)


def test_a_sleeping_engine_gives_its_memory_back(folder: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    wide = save_llama(tmp_path_factory.mktemp("wide"), tied=True, seed=1, layers=64)
    before = torch.cuda.memory_allocated()
    engine = HfRolloutEngine("fp32", EngineConfig())
    engine.load(wide)
    held = torch.cuda.memory_allocated() - before
    assert held > 64 * 4 * (4 * 64 * 64 + 3 * 64 * 96)
    engine.sleep()
    assert torch.cuda.memory_allocated() - before < 0.1 * held
    engine.wake()
    assert torch.cuda.memory_allocated() - before > 0.9 * held
    assert engine.status() == "stale"


def test_the_meter_of_a_gpu_tells_the_peak_since_the_last_reading() -> None:
    take_reading()
    base = torch.cuda.memory_allocated() / MIB
    torch.empty(300 * MIB, dtype=torch.uint8, device="cuda")
    reading = take_reading()
    assert reading["gpu_peak_mb"] == pytest.approx(base + 300, abs=3)
    assert reading["gpu_mb"] == pytest.approx(base, abs=3)
    assert take_reading()["gpu_peak_mb"] == pytest.approx(base, abs=3)


def test_bf16_answers_have_finite_log_probabilities(folder: str) -> None:
    engine = HfRolloutEngine("bf16", EngineConfig(max_rows=16))
    engine.load(folder)
    asked = replace(request(1.0), seed=1)
    answers = engine.generate(asked)
    assert [prompt_of(one) for one in answers] == list(asked.prompts)
    assert all(-50 < number <= 0 for one in answers for number in one.logprobs)
