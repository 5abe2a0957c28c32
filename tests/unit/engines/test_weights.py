"""A weight transfer is whole and in order, or loud, and a stale engine serves nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cai_dist.config.training import Dtype
from cai_dist.engines.hf_rollout import HfRolloutEngine
from cai_dist.engines.train import buckets
from cai_dist.errors import StaleEngineError, WeightTransferError
from cai_dist.models.load import load_causal
from cai_dist.models.tensors import from_numpy, spec_of, to_numpy
from cai_dist.types import GenerateRequest, Generation, SamplingParams, TensorSpec
from tests.tiny import save_llama

REQUEST = GenerateRequest(((5, 6, 7), (8,)), SamplingParams(8, 0.0), 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two models of one shape; tied, so that a forgotten output head shows."""
    make = tmp_path_factory.mktemp
    return save_llama(make("a"), tied=True, seed=0), save_llama(make("b"), tied=True, seed=1)


def loaded(folder: str, dtype: Dtype = "fp32", require_sync: bool = False) -> HfRolloutEngine:
    engine = HfRolloutEngine(dtype, require_sync=require_sync)
    engine.load(folder)
    return engine


def weights_of(folder: str, dtype: Dtype = "fp32") -> tuple[list[TensorSpec], dict[str, Any]]:
    parameters = dict(load_causal(folder, dtype).hf.named_parameters())
    return [spec_of(n, p) for n, p in parameters.items()], {n: to_numpy(p) for n, p in parameters.items()}


def answers(engine: HfRolloutEngine) -> list[tuple[int, ...]]:
    found: list[Generation] = engine.generate(REQUEST)
    return [generation.response_ids for generation in found]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_after_a_transfer_the_engine_is_the_other_model(folders: tuple[str, str], dtype: Dtype) -> None:
    engine = loaded(folders[0], dtype)
    before = answers(engine)
    manifest, weights = weights_of(folders[1], dtype)
    engine.begin_weights(3, manifest)
    for bucket in buckets(manifest, 20_000):
        engine.accept_weights({spec.name: weights[spec.name] for spec in bucket})
    engine.finish_weights(3)
    assert answers(engine) == answers(loaded(folders[1], dtype)) != before
    assert engine.weight_version == 3 and engine.generate(REQUEST)[0].weight_version == 3


def test_nothing_is_served_between_begin_and_finish(folders: tuple[str, str]) -> None:
    engine = loaded(folders[0], require_sync=True)
    manifest, weights = weights_of(folders[1])
    assert (engine.status(), engine.weight_version) == ("stale", -1)
    engine.begin_weights(1, manifest)
    engine.accept_weights(weights)
    with pytest.raises(StaleEngineError):
        engine.generate(REQUEST)
    engine.finish_weights(1)
    assert engine.status() == "ready"
    engine.begin_weights(2, manifest)
    with pytest.raises(StaleEngineError):
        engine.generate(REQUEST)


def break_missing(weights: dict[str, Any], name: str) -> None:
    del weights[name]


def break_unknown(weights: dict[str, Any], name: str) -> None:
    weights["not.there"] = weights[name]


def break_truncated(weights: dict[str, Any], name: str) -> None:
    weights[name] = weights[name][:-1]


def break_dtype(weights: dict[str, Any], name: str) -> None:
    weights[name] = weights[name].astype(np.float64)


def break_transposed(weights: dict[str, Any], name: str) -> None:
    weights[name] = np.ascontiguousarray(weights[name].T)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_missing, "1 tensors never came, first model.layers.1.mlp.up_proj.weight"),
        (break_unknown, "unknown tensor 'not.there'"),
        (break_truncated, r"up_proj.weight came as float32\[95, 64\]"),
        (break_dtype, "up_proj.weight came as float64"),
        (break_transposed, r"up_proj.weight came as float32\[64, 96\]"),
    ],
)
def test_a_damaged_transfer_is_loud_and_leaves_the_engine_stale(
    folders: tuple[str, str], damage: Any, message: str
) -> None:
    engine = loaded(folders[0])
    manifest, weights = weights_of(folders[1])
    damage(weights, "model.layers.1.mlp.up_proj.weight")
    engine.begin_weights(1, manifest)
    with pytest.raises(WeightTransferError, match=message):
        engine.accept_weights(weights)
        engine.finish_weights(1)
    with pytest.raises(WeightTransferError):  # it cannot be finished after all
        engine.finish_weights(1)
    assert (engine.status(), engine.weight_version) == ("stale", -1)
    with pytest.raises(StaleEngineError):
        engine.generate(REQUEST)
    manifest, weights = weights_of(folders[1])
    engine.begin_weights(2, manifest)
    engine.accept_weights(weights)
    engine.finish_weights(2)
    assert answers(engine) == answers(loaded(folders[1]))


def test_a_tensor_comes_once(folders: tuple[str, str]) -> None:
    engine = loaded(folders[0])
    manifest, weights = weights_of(folders[1])
    engine.begin_weights(1, manifest)
    engine.accept_weights({"model.norm.weight": weights["model.norm.weight"]})
    with pytest.raises(WeightTransferError, match="model.norm.weight came twice"):
        engine.accept_weights(weights)
    del weights["model.norm.weight"]
    with pytest.raises(WeightTransferError, match="without a transfer being open"):  # that one cannot be saved
        engine.accept_weights(weights)


def test_calls_out_of_order_are_refused(folders: tuple[str, str]) -> None:
    engine = loaded(folders[0])
    manifest, weights = weights_of(folders[1])
    with pytest.raises(WeightTransferError, match="without a transfer being open"):
        engine.accept_weights(weights)
    with pytest.raises(WeightTransferError, match="without a transfer being open"):
        engine.finish_weights(1)
    engine.begin_weights(1, manifest)
    engine.accept_weights(weights)
    with pytest.raises(WeightTransferError, match="finish of weight version 2 while version 1 is open"):
        engine.finish_weights(2)
    assert engine.status() == "stale"
    with pytest.raises(WeightTransferError, match="no model is loaded"):
        HfRolloutEngine("fp32").begin_weights(1, manifest)


def test_a_manifest_of_another_model_is_refused(folders: tuple[str, str]) -> None:
    manifest, _ = weights_of(folders[1])
    for wrong, message in [
        (manifest[:-1], "lacks model.norm.weight"),
        ([*manifest, TensorSpec("x", (1,), "float32", 4)], "names x, which this model lacks"),
        ([*manifest, manifest[0]], "names a tensor twice"),
        ([*manifest[:-1], TensorSpec("model.norm.weight", (64,), "bfloat16", 128)], "announced as bfloat16"),
    ]:
        engine = loaded(folders[0])
        with pytest.raises(WeightTransferError, match=message):
            engine.begin_weights(1, wrong)
        assert engine.status() == "stale"


def test_bf16_keeps_every_bit_on_its_way() -> None:
    tensor = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    array = to_numpy(tensor)
    assert array.dtype == np.uint16
    assert torch.equal(from_numpy(array, "bfloat16"), tensor)
    array.flags.writeable = False  # as it comes out of shared memory
    assert torch.equal(from_numpy(array, "bfloat16"), tensor)


def test_buckets_keep_order_and_size() -> None:
    specs = [TensorSpec(str(i), (n,), "float32", 4 * n) for i, n in enumerate([1, 2, 50, 1, 1, 1])]
    found = list(buckets(specs, 12))
    assert [[s.name for s in bucket] for bucket in found] == [["0", "1"], ["2"], ["3", "4", "5"]]
    assert list(buckets([], 12)) == []
