"""A sleeping engine holds no weights and serves nothing; it wakes as the model that the next transfer makes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cai_dist.config.engine import EngineConfig
from cai_dist.engines.hf.rollout import HfRolloutEngine
from cai_dist.errors import StaleEngineError, WeightTransferError
from cai_dist.models.load import load_hf_causal
from cai_dist.models.tensors import spec_of, to_numpy
from cai_dist.types import GenerateRequest, LabelRequest, SamplingParams, TensorPiece, TensorSpec, WeightPart
from tests.ids import response_of
from tests.tiny import save_llama

REQUEST = GenerateRequest(((5, 6, 7), (8,)), SamplingParams(8, 0.0), 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("model"), tied=True, seed=0)


@pytest.fixture
def engine(folder: str) -> HfRolloutEngine:
    made = HfRolloutEngine("fp32", EngineConfig())
    made.load(folder)
    return made


def held_bytes(engine: HfRolloutEngine) -> int:
    return sum(parameter.untyped_storage().nbytes() for parameter in engine._model.parameters())


def transfer(engine: HfRolloutEngine, folder: str) -> None:
    parameters = dict(load_hf_causal(folder, "fp32").named_parameters())
    manifest: list[TensorSpec] = [spec_of(name, p) for name, p in parameters.items()]
    pieces = tuple(TensorPiece(name, 0, p.numel()) for name, p in parameters.items())
    data = np.concatenate([to_numpy(p).reshape(-1).view(np.uint8) for p in parameters.values()])
    engine.begin_weights(4, manifest)
    engine.accept_weights([WeightPart(pieces, data)])
    engine.finish_weights(4)


def test_sleep_gives_the_memory_up_and_a_transfer_brings_the_model_back(engine: HfRolloutEngine, folder: str) -> None:
    before, full = engine.generate(REQUEST), held_bytes(engine)
    buffers = {name: buffer.clone() for name, buffer in engine._model.named_buffers()}
    assert full > 100_000 and buffers
    for _ in range(2):  # it may be put to sleep again
        engine.sleep()
        assert (engine.status(), engine.weight_version, held_bytes(engine)) == ("asleep", -1, 0)
    engine.wake()
    assert (engine.status(), engine.weight_version, held_bytes(engine)) == ("stale", -1, full)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in engine._model.named_buffers())
    transfer(engine, folder)
    assert (engine.status(), engine.weight_version) == ("ready", 4)
    assert [response_of(s) for s in engine.generate(REQUEST)] == [response_of(s) for s in before]
    model = engine._model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_nothing_is_served_from_sleep_to_the_end_of_a_transfer(engine: HfRolloutEngine, folder: str) -> None:
    engine.sleep()
    with pytest.raises(StaleEngineError, match="generate: the engine sleeps"):
        engine.generate(REQUEST)
    with pytest.raises(StaleEngineError, match="sleeps"):
        engine.score_labels(LabelRequest(((3,),), ((4,),)))
    with pytest.raises(WeightTransferError, match="sleeps; wake it first"):
        transfer(engine, folder)
    engine.wake()
    with pytest.raises(StaleEngineError, match="waits for a finished weight transfer"):
        engine.generate(REQUEST)
    engine.wake()
    assert engine.status() == "stale"
    transfer(engine, folder)
    engine.wake()  # one that is awake stays as it is
    assert engine.status() == "ready" and len(engine.generate(REQUEST)) == 2


def test_a_transfer_that_was_open_is_lost_in_sleep(engine: HfRolloutEngine, folder: str) -> None:
    engine.begin_weights(1, [spec_of(n, p) for n, p in load_hf_causal(folder, "fp32").named_parameters()])
    engine.sleep()
    engine.wake()
    with pytest.raises(WeightTransferError, match="without a transfer being open"):
        engine.finish_weights(1)


def test_a_sleeping_engine_can_load(engine: HfRolloutEngine, folder: str) -> None:
    before = engine.generate(REQUEST)
    engine.sleep()
    engine.load(folder)
    assert engine.status() == "ready" and engine.generate(REQUEST) == before


def test_an_engine_without_a_model_has_nothing_to_give_up(tmp_path: Path) -> None:
    engine = HfRolloutEngine("fp32", EngineConfig())
    engine.sleep()
    engine.wake()
    assert engine.status() == "empty"
