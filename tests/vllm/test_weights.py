"""Transfers into vLLM: whole or not at all, nothing of the old weights stays, and who is stale does not serve."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cai_dist.engines.factory import build_rollout_engine
from cai_dist.errors import StaleEngineError, WeightTransferError
from cai_dist.types import GenerateRequest, LabelRequest, SamplingParams, TensorPiece, WeightPart
from tests.vllm.lab import END, VLLM, random_prompts, save_model, send, transfer, worst

SAMPLED = GenerateRequest(random_prompts(8), SamplingParams(12, 1.0, 1.0, (END,)), seed=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    first, second = (save_model(tmp_path_factory.mktemp("model"), tied=True, seed=seed) for seed in (0, 1))
    return first, second


@pytest.fixture(scope="module")
def engine(folders: tuple[str, str]) -> Iterator[Any]:
    """Restarted, as after a fault: it has the architecture alone."""
    made: Any = build_rollout_engine(VLLM, "fp32", require_sync=True)
    made.load(folders[0])
    yield made
    made._stop()


def refuses(engine: Any) -> bool:
    with pytest.raises(StaleEngineError, match="waits for a finished weight transfer"):
        engine.generate(SAMPLED)
    with pytest.raises(StaleEngineError):
        engine.score_labels(LabelRequest(((3,),), ((4,),)))
    return engine.status() == "stale" and engine.weight_version == -1


def test_a_restarted_engine_serves_nothing_before_the_first_transfer(engine: Any, folders: tuple[str, str]) -> None:
    assert refuses(engine)
    send(engine, folders[1], 4)
    assert engine.status() == "ready"
    assert worst(folders[1], engine.generate(SAMPLED)) < 1e-4


def test_keys_and_values_of_the_old_weights_are_dropped(engine: Any, folders: tuple[str, str]) -> None:
    """The prompt fills two blocks of vLLM's prefix cache."""
    long = replace(SAMPLED, prompts=(tuple(3 + i % 60 for i in range(300)),) * 2)
    for version, folder in ((5, folders[0]), (6, folders[1])):
        send(engine, folder, version)
        assert worst(folder, engine.generate(long)) < 1e-4
        assert worst(folder, engine.generate(long)) < 1e-4  # now from the cache


def dropped(parts: list[WeightPart]) -> list[WeightPart]:
    """Without the second half of every tensor."""
    return parts[:1]


def twice(parts: list[WeightPart]) -> list[WeightPart]:
    return [*parts, parts[0]]


def truncated(parts: list[WeightPart]) -> list[WeightPart]:
    return [replace(parts[0], data=parts[0].data[:-4]), parts[1]]


def unknown(parts: list[WeightPart]) -> list[WeightPart]:
    return [*parts, WeightPart((TensorPiece("stranger", 0, 1),), np.zeros(4, np.uint8))]


@pytest.mark.parametrize("damage", [dropped, twice, truncated, unknown])
def test_a_damaged_bucket_raises_and_a_whole_transfer_heals(engine: Any, folders: tuple[str, str], damage: Any) -> None:
    manifest, buckets = transfer(folders[0])
    engine.begin_weights(7, manifest)
    engine.accept_weights(buckets[0])
    with pytest.raises(WeightTransferError):
        engine.accept_weights(damage(buckets[1]))
    with pytest.raises(WeightTransferError, match="without a transfer being open"):
        engine.finish_weights(7)
    assert refuses(engine)
    send(engine, folders[0], 8)
    assert worst(folders[0], engine.generate(SAMPLED)) < 1e-4


def test_a_tensor_that_never_comes_or_comes_again_raises(engine: Any, folders: tuple[str, str]) -> None:
    manifest, buckets = transfer(folders[1])
    engine.begin_weights(9, manifest)
    for bucket in buckets[:-1]:
        engine.accept_weights(bucket)
    with pytest.raises(WeightTransferError, match="never came"):
        engine.finish_weights(9)
    assert refuses(engine)
    engine.begin_weights(10, manifest)
    engine.accept_weights(buckets[0])
    with pytest.raises(WeightTransferError, match="came twice"):
        engine.accept_weights(buckets[0])
    engine.begin_weights(11, manifest)
    with pytest.raises(WeightTransferError, match="finish of weight version 12 while version 11 is open"):
        engine.finish_weights(12)
    assert refuses(engine)
    send(engine, folders[1], 13)
    assert worst(folders[1], engine.generate(SAMPLED)) < 1e-4


def test_a_manifest_of_another_model_is_refused(engine: Any, folders: tuple[str, str]) -> None:
    manifest, _ = transfer(folders[0])
    others = {
        "lacks": manifest[1:],
        "names a tensor twice": [*manifest, manifest[0]],
        "which this model lacks": [*manifest, replace(manifest[0], name="lm_head.weight")],
        "is announced as": [replace(manifest[0], shape=(32, 128)), *manifest[1:]],
    }
    for message, other in others.items():
        with pytest.raises(WeightTransferError, match=message):
            engine.begin_weights(14, other)
        assert refuses(engine)
    with pytest.raises(WeightTransferError, match="without a transfer being open"):
        engine.accept_weights(())
    send(engine, folders[0], 15)


def test_sleep_gives_the_model_up_and_weights_must_come_again(engine: Any, folders: tuple[str, str]) -> None:
    send(engine, folders[0], 16)
    engine.wake()
    assert engine.status() == "ready"
    engine.sleep()
    engine.sleep()
    assert engine.status() == "asleep" and engine.weight_version == -1
    with pytest.raises(StaleEngineError, match="the engine sleeps"):
        engine.generate(SAMPLED)
    with pytest.raises(WeightTransferError, match="is asleep"):
        engine.begin_weights(17, transfer(folders[0])[0])
    engine.wake()
    assert refuses(engine)
    send(engine, folders[1], 18)
    assert worst(folders[1], engine.generate(SAMPLED)) < 1e-4


class Asleep:
    """What vLLM is told, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.told.append((name, kwargs.get("tags") or kwargs.get("level"))) or True


def test_on_a_gpu_keys_and_values_wake_when_the_weights_have_come(
    folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cai_dist.engines.vllm.rollout.on_cpu", lambda: False)
    made: Any = build_rollout_engine(VLLM, "fp32", require_sync=True)
    made._llm, made._source, made._status = Asleep(), folders[0], "ready"
    from cai_dist.engines.vllm.setup import outline_of  # imports vllm

    made._outline = outline_of(folders[0], "fp32")
    for version in (1, 2):
        made.sleep()
        made.wake()
        send(made, folders[1], version)
        assert made.status() == "ready"
        told = [one for one in made._llm.told if one[0] in ("sleep", "wake_up", "finish_weight_update")]
        order = [("sleep", 2), ("wake_up", ["weights"]), ("finish_weight_update", None), ("wake_up", ["kv_cache"])]
        assert told == order * version
