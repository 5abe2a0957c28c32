"""A weight transfer is whole and in order, or loud, and a stale engine serves nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cai_dist.config.engine import EngineConfig
from cai_dist.config.training import Dtype
from cai_dist.engines.hf.rollout import HfRolloutEngine
from cai_dist.errors import StaleEngineError, WeightTransferError
from cai_dist.models.load import load_causal
from cai_dist.models.tensors import from_numpy, spec_of, to_numpy
from cai_dist.types import (
    GenerateRequest,
    Generation,
    SamplingParams,
    TensorPiece,
    TensorSpec,
    WeightPart,
    WeightTerms,
)
from cai_dist.weight_sync import receiver as receiving
from cai_dist.weight_sync.protocol import buckets
from cai_dist.weight_sync.receiver import whole_tensors
from tests.ids import response_of
from tests.tiny import save_llama

REQUEST = GenerateRequest(((5, 6, 7), (8,)), SamplingParams(8, 0.0), 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two models of one shape; tied, so that a forgotten output head shows."""
    make = tmp_path_factory.mktemp
    return save_llama(make("a"), tied=True, seed=0), save_llama(make("b"), tied=True, seed=1)


def loaded(folder: str, dtype: Dtype = "fp32", require_sync: bool = False) -> HfRolloutEngine:
    engine = HfRolloutEngine(dtype, EngineConfig(), require_sync=require_sync)
    engine.load(folder)
    return engine


def weights_of(folder: str, dtype: Dtype = "fp32") -> tuple[list[TensorSpec], dict[str, Any]]:
    parameters = dict(load_causal(folder, dtype).hf.named_parameters())
    return [spec_of(n, p) for n, p in parameters.items()], {n: to_numpy(p) for n, p in parameters.items()}


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"


def parts_of(weights: dict[str, Any], ranks: int = 2) -> list[WeightPart]:
    """The arrays as two ranks would send them: the first one's in one buffer, the second one's in a buffer each."""
    parts = []
    for rank in range(ranks):
        pieces, data = [], []
        for name, array in weights.items():
            size = -(-array.size // ranks)
            mine = array.reshape(-1)[rank * size : (rank + 1) * size]
            pieces.append(TensorPiece(name, rank * size, mine.size))
            data.append(mine.view(np.uint8))
        parts.append(WeightPart(tuple(pieces), tuple(data) if rank else np.concatenate(data)))
    return parts


def answers(engine: HfRolloutEngine) -> list[tuple[int, ...]]:
    found: list[Generation] = engine.generate(REQUEST)
    return [response_of(generation) for generation in found]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_after_a_transfer_the_engine_is_the_other_model(folders: tuple[str, str], dtype: Dtype) -> None:
    engine = loaded(folders[0], dtype)
    before = answers(engine)
    manifest, weights = weights_of(folders[1], dtype)
    engine.begin_weights(3, manifest)
    for bucket in buckets(manifest, 20_000):
        engine.accept_weights(parts_of({spec.name: weights[spec.name] for spec in bucket}))
    engine.finish_weights(3)
    assert answers(engine) == answers(loaded(folders[1], dtype)) != before
    assert engine.weight_version == 3 and engine.generate(REQUEST)[0].weight_version == 3


def test_nothing_is_served_between_begin_and_finish(folders: tuple[str, str]) -> None:
    engine = loaded(folders[0], require_sync=True)
    manifest, weights = weights_of(folders[1])
    assert (engine.status(), engine.weight_version) == ("stale", -1)
    engine.begin_weights(1, manifest)
    engine.accept_weights(parts_of(weights))
    with pytest.raises(StaleEngineError):
        engine.generate(REQUEST)
    engine.finish_weights(1)
    assert engine.status() == "ready"
    engine.begin_weights(2, manifest)
    with pytest.raises(StaleEngineError):
        engine.generate(REQUEST)


def cut(part: WeightPart, piece: TensorPiece, data: Any) -> WeightPart:
    """The part with its first piece exchanged."""
    return WeightPart((piece, *part.pieces[1:]), (data, *part.data[1:]))


def missing_tensor(part: WeightPart) -> WeightPart:
    return WeightPart((), ())


def unknown_tensor(part: WeightPart) -> WeightPart:
    return cut(part, TensorPiece("not.there", 0, 3), part.data[0])


def truncated(part: WeightPart) -> WeightPart:
    return cut(part, part.pieces[0], part.data[0][:-4])


def too_long(part: WeightPart) -> WeightPart:
    return cut(part, part.pieces[0], np.append(part.data[0], np.zeros(4, np.uint8)))


def other_dtype(part: WeightPart) -> WeightPart:
    return cut(part, part.pieces[0], part.data[0].view(np.float32))


def last_element_missing(part: WeightPart) -> WeightPart:
    first = part.pieces[0]
    return cut(part, TensorPiece(first.name, first.start, first.count - 1), part.data[0][:-4])


def overlapping(part: WeightPart) -> WeightPart:
    first = part.pieces[0]
    return cut(part, TensorPiece(first.name, first.start - 1, first.count), part.data[0])


def beyond_the_end(part: WeightPart) -> WeightPart:
    first = part.pieces[0]
    return cut(part, TensorPiece(first.name, first.start + 1, first.count), part.data[0])


def one_array_too_few(part: WeightPart) -> WeightPart:
    return WeightPart(part.pieces, part.data[1:])


def flat_and_truncated(part: WeightPart) -> WeightPart:
    return WeightPart(part.pieces, np.concatenate(part.data)[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_tensor, "up_proj.weight came with 3072 of its 6144 elements"),
        (unknown_tensor, "unknown tensor 'not.there'"),
        (truncated, "up_proj.weight came as 12284 bytes instead of 12288 bytes"),
        (too_long, "up_proj.weight came as 12292 bytes instead of 12288 bytes"),
        (other_dtype, "up_proj.weight came as a ndarray that is no flat bytes"),
        (last_element_missing, "up_proj.weight came with 6143 of its 6144 elements"),
        (overlapping, "up_proj.weight came twice: elements 3071 to 6143"),
        (beyond_the_end, "up_proj.weight has no elements 3073 to 6145"),
        (one_array_too_few, "a part of 2 pieces came with 1 arrays"),
        (flat_and_truncated, "up_proj.weight came as 12415 bytes instead of 12416 bytes"),
    ],
)
def test_a_damaged_bucket_is_loud_and_leaves_the_engine_stale_and_uncopied(
    folders: tuple[str, str], damage: Any, message: str
) -> None:
    engine = loaded(folders[0])
    manifest, weights = weights_of(folders[1])
    good, broken = parts_of({name: weights[name] for name in (UP, NORM)})
    before = to_numpy(engine._model.get_parameter(UP))
    engine.begin_weights(1, manifest)
    with pytest.raises(WeightTransferError, match=message):
        engine.accept_weights([good, damage(broken)])
    assert np.array_equal(to_numpy(engine._model.get_parameter(UP)), before)
    with pytest.raises(WeightTransferError):  # it cannot be finished after all
        engine.finish_weights(1)
    assert (engine.status(), engine.weight_version) == ("stale", -1)
    with pytest.raises(StaleEngineError):
        engine.generate(REQUEST)
    engine.begin_weights(2, manifest)
    engine.accept_weights(parts_of(weights))
    engine.finish_weights(2)
    assert answers(engine) == answers(loaded(folders[1]))


def test_a_copy_that_fails_half_way_ends_the_transfer(
    folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = loaded(folders[0])
    manifest, weights = weights_of(folders[1])
    terms = WeightTerms("policy")
    engine.begin_weights(1, manifest, terms)
    engine.accept_weights(parts_of(weights))
    engine.finish_weights(1)
    assert engine.weights_held() == "policy"
    copied = []

    def fails_at_the_second(flat: torch.Tensor, data: Any) -> None:
        if copied:
            raise RuntimeError("out of memory")
        copied.append(flat.numel())

    engine.begin_weights(2, manifest, terms)
    with monkeypatch.context() as patch:
        patch.setattr(receiving, "copy_elements", fails_at_the_second)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.accept_weights(parts_of(weights))
    assert len(copied) == 1  # the bucket was admitted whole, so that the ledger alone would take it for complete
    with pytest.raises(WeightTransferError, match="finish of weight version 2 without a transfer being open"):
        engine.finish_weights(2)
    assert (engine.status(), engine.weight_version, engine.weights_held()) == ("stale", -1, "")
    with pytest.raises(StaleEngineError):
        engine.generate(REQUEST)
    with pytest.raises(WeightTransferError, match="1 tensors do not come and are not here from before"):
        engine.begin_weights(3, manifest, WeightTerms("policy", frozenset({NORM})))
    engine.begin_weights(3, manifest, terms)
    engine.accept_weights(parts_of(weights))
    engine.finish_weights(3)
    assert answers(engine) == answers(loaded(folders[1]))


def test_a_tensor_that_never_came_is_missed_at_the_end(folders: tuple[str, str]) -> None:
    engine = loaded(folders[0])
    manifest, weights = weights_of(folders[1])
    del weights[UP]
    engine.begin_weights(1, manifest)
    engine.accept_weights(parts_of(weights))
    with pytest.raises(WeightTransferError, match=f"1 tensors never came, first {UP}"):
        engine.finish_weights(1)
    assert engine.status() == "stale"


def test_a_tensor_comes_once(folders: tuple[str, str]) -> None:
    engine = loaded(folders[0])
    manifest, weights = weights_of(folders[1])
    engine.begin_weights(1, manifest)
    engine.accept_weights(parts_of({NORM: weights[NORM]}))
    with pytest.raises(WeightTransferError, match="model.norm.weight came twice"):
        engine.accept_weights(parts_of(weights))
    del weights[NORM]
    with pytest.raises(WeightTransferError, match="without a transfer being open"):  # that one cannot be saved
        engine.accept_weights(parts_of(weights))


def test_whole_tensors_puts_the_pieces_of_all_ranks_together(folders: tuple[str, str]) -> None:
    for dtype in ("fp32", "bf16"):
        manifest, weights = weights_of(folders[1], dtype)  # type: ignore[arg-type]
        few = {name: weights[name] for name in (UP, NORM)}
        for ranks in (1, 2, 5):
            whole = whole_tensors(manifest, parts_of(few, ranks))
            assert list(whole) == list(few)
            assert all(np.array_equal(whole[n], few[n]) and whole[n].dtype == few[n].dtype for n in few)
        torch_parts = [
            WeightPart(p.pieces, torch.from_numpy(np.concatenate(p.data if isinstance(p.data, tuple) else [p.data])))
            for p in parts_of(few)
        ]
        assert all(np.array_equal(array, few[name]) for name, array in whole_tensors(manifest, torch_parts).items())
    with pytest.raises(WeightTransferError, match=r"up_proj.weight came with 3072 of its 6144 elements"):
        whole_tensors(manifest, parts_of(few)[:1])


def test_calls_out_of_order_are_refused(folders: tuple[str, str]) -> None:
    engine = loaded(folders[0])
    manifest, weights = weights_of(folders[1])
    with pytest.raises(WeightTransferError, match="without a transfer being open"):
        engine.accept_weights(parts_of(weights))
    with pytest.raises(WeightTransferError, match="without a transfer being open"):
        engine.finish_weights(1)
    engine.begin_weights(1, manifest)
    engine.accept_weights(parts_of(weights))
    with pytest.raises(WeightTransferError, match="finish of weight version 2 while version 1 is open"):
        engine.finish_weights(2)
    assert engine.status() == "stale"
    with pytest.raises(WeightTransferError, match="no model is loaded"):
        HfRolloutEngine("fp32", EngineConfig()).begin_weights(1, manifest)


def test_a_manifest_of_another_model_is_refused(folders: tuple[str, str]) -> None:
    manifest, _ = weights_of(folders[1])
    for wrong, message in [
        (manifest[:-1], "lacks model.norm.weight"),
        ([*manifest, TensorSpec("x", (1,), "float32", 4)], "names x, which this model lacks"),
        ([*manifest, manifest[0]], "names a tensor twice"),
        ([*manifest[:-1], TensorSpec("model.norm.weight", (64,), "bfloat16", 128)], "announced as bfloat16"),
        ([*manifest[:-1], TensorSpec(NORM, (64,), "float32", 255)], "gives float32\\[64\\] 255 bytes"),
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
