"""What the ranks of a trainer send makes up its model, whole, in every layout, with and without adapters."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cai_dist.errors import WeightTransferError
from cai_dist.models.lora import LoraFactors, merged
from cai_dist.models.tensors import to_numpy
from cai_dist.types import TensorSpec, WeightPlan
from cai_dist.weight_sync.receiver import HeldWeights, WeightReceiver, whole_tensors
from cai_dist.weight_sync.sender import ParameterSource, slices

SHAPES = {"embed": (7, 5), "proj": (5, 3), "norm": (5,), "one": (1,)}
BUCKET = 64


def model(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    torch.manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape).to(dtype)) for name, shape in SHAPES.items()}


def adapters(dtype: torch.dtype = torch.float32) -> dict[str, LoraFactors]:
    torch.manual_seed(9)
    a, b = nn.Parameter(torch.randn(2, 3).to(dtype)), nn.Parameter(torch.randn(5, 2).to(dtype))
    return {"proj": LoraFactors(a, b, 0.5)}


def partitioned(parameter: nn.Parameter, rank: int, ranks: int) -> nn.Parameter:
    """As ZeRO-3 leaves a parameter on `rank`: empty, its slice beside it, padded with what must not travel."""
    flat = parameter.detach().reshape(-1)
    size = -(-flat.numel() // ranks)
    slot = torch.full((size,), torch.nan, dtype=flat.dtype)
    mine = flat[rank * size : (rank + 1) * size]
    slot[: len(mine)] = mine
    left: Any = nn.Parameter(torch.empty(0, dtype=flat.dtype), requires_grad=parameter.requires_grad)
    left.ds_tensor, left.ds_numel, left.ds_shape = slot, flat.numel(), parameter.shape
    return left  # type: ignore[no-any-return]


def sources(
    parameters: dict[str, nn.Parameter], factors: dict[str, LoraFactors], ranks: int, zero3: bool = False
) -> list[ParameterSource]:
    made = []
    for rank in range(ranks):
        here = {n: partitioned(p, rank, ranks) for n, p in parameters.items()} if zero3 else parameters
        made.append(ParameterSource(here, factors, rank, ranks, lambda tensors: nullcontext()))
    return made


def send(ranks: list[ParameterSource], plan: WeightPlan, receiver: WeightReceiver) -> None:
    for bucket in plan.buckets:
        receiver.accept([source.part(bucket, plan.terms is None) for source in ranks])


def transfer(
    ranks: list[ParameterSource], into: dict[str, nn.Parameter], held: HeldWeights | None, version: int
) -> tuple[HeldWeights, int]:
    """One transfer; returns what the receiver keeps, and the bytes that travelled."""
    plan = ranks[0].plan(BUCKET, [held.sender if held else ""])
    receiver = WeightReceiver(into, version, plan.manifest, plan.terms, held)
    send(ranks, plan, receiver)
    return receiver.finish(version), sum(spec.nbytes for bucket in plan.buckets for spec in bucket)


@given(st.lists(st.integers(1, 40), max_size=5), st.integers(1, 6))
def test_slices_of_all_ranks_are_every_element_once(sizes: list[int], ranks: int) -> None:
    specs = [TensorSpec(str(i), (n,), "float32", 4 * n) for i, n in enumerate(sizes)]
    seen = [
        (piece.name, i)
        for rank in range(ranks)
        for piece in slices(specs, rank, ranks)
        for i in range(piece.start, piece.start + piece.count)
    ]
    assert sorted(seen) == sorted((spec.name, i) for spec in specs for i in range(spec.shape[0]))
    assert all(piece.count > 0 for rank in range(ranks) for piece in slices(specs, rank, ranks))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("zero3", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_receiver_ends_with_the_senders_bits(ranks: int, zero3: bool, dtype: torch.dtype) -> None:
    ours, theirs = model(0, dtype), model(1, dtype)
    _, size = transfer(sources(ours, {}, ranks, zero3), theirs, None, 1)
    assert all(torch.equal(ours[name], theirs[name]) for name in SHAPES)
    assert size == 56 * ours["one"].element_size()


def test_parts_share_the_memory_of_the_parameters() -> None:
    ours = model(0)
    (source,) = sources(ours, {}, 1)
    part = source.part(source.specs(), merge=False)
    with torch.no_grad():
        ours["norm"].fill_(3.0)
    at = [piece.name for piece in part.pieces].index("norm")
    assert np.array_equal(part.data[at].view(np.float32), np.full(5, 3.0, np.float32))


@pytest.mark.parametrize("zero3", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_engine_that_takes_plain_models_gets_merged_weights(dtype: torch.dtype, zero3: bool) -> None:
    ours, factors = model(0, dtype), adapters(dtype)
    ours["proj"].requires_grad_(False)
    ranks = sources(ours, factors, 3, zero3)
    plan = ranks[0].plan(BUCKET, ["x", None])
    assert plan.terms is None and {spec.name for spec in plan.manifest} == set(SHAPES)
    for bucket in plan.buckets:
        for name, array in whole_tensors(plan.manifest, [source.part(bucket, True) for source in ranks]).items():
            expected = merged(ours[name], factors[name]) if name in factors else ours[name].detach()
            assert torch.equal(torch.from_numpy(array).view(dtype), expected)


def frozen_model() -> tuple[dict[str, nn.Parameter], dict[str, LoraFactors]]:
    """All but `one` is frozen, an adapter on `proj`."""
    ours = model(0)
    for name in ("embed", "proj", "norm"):
        ours[name].requires_grad_(False)
    return ours, adapters()


def test_after_the_first_transfer_the_adapter_travels_alone() -> None:
    ours, factors = frozen_model()
    theirs = model(1)
    ranks = sources(ours, factors, 2)
    held, first = transfer(ranks, theirs, None, 1)
    assert first == 4 * (56 + 6 + 10), "the whole base, A and B"
    assert torch.equal(theirs["proj"], merged(ours["proj"], factors["proj"]))
    for version in (2, 3):
        with torch.no_grad():
            factors["proj"].b.mul_(-1.5)
            ours["one"].add_(1)
        held, size = transfer(ranks[:1] + ranks[1:], theirs, held, version)
        assert size == 4 * (1 + 6 + 10), "what is trained: `one`, A and B"
        assert torch.equal(theirs["proj"], merged(ours["proj"], factors["proj"]))
        assert torch.equal(theirs["one"], ours["one"]) and torch.equal(theirs["embed"], ours["embed"])


def test_everything_travels_to_an_engine_that_has_not_this_base() -> None:
    ours, factors = frozen_model()
    ranks = sources(ours, factors, 2)
    held, full = transfer(ranks, model(1), None, 1)
    sender = ranks[0].sender
    travels = {
        str(names): sum(spec.nbytes for bucket in ranks[0].plan(BUCKET, names).buckets for spec in bucket)
        for names in ([sender, sender], [sender, ""], ["other", sender])
    }
    assert list(travels.values()) == [68, full, full]
    ranks[0].renew()  # a checkpoint was loaded
    assert sum(spec.nbytes for bucket in ranks[0].plan(BUCKET, [sender]).buckets for spec in bucket) == full
    assert held.sender == sender


@pytest.mark.parametrize("held", [None, HeldWeights("somebody else", {})])
def test_a_receiver_without_the_base_refuses_the_adapter_alone(held: HeldWeights | None) -> None:
    ours, factors = frozen_model()
    (source,) = sources(ours, factors, 1)
    plan = source.plan(BUCKET, [source.sender])
    with pytest.raises(WeightTransferError, match="3 tensors do not come and are not here from before"):
        WeightReceiver(model(1), 2, plan.manifest, plan.terms, held)


def test_what_is_kept_may_not_come() -> None:
    ours, factors = frozen_model()
    (source,) = sources(ours, factors, 1)
    theirs = model(1)
    held, _ = transfer([source], theirs, None, 1)
    plan = source.plan(BUCKET, [source.sender])
    receiver = WeightReceiver(theirs, 2, plan.manifest, plan.terms, held)
    with pytest.raises(WeightTransferError, match="embed came, which stays"):
        receiver.accept([source.part([spec for spec in plan.manifest if spec.name == "embed"], False)])


@pytest.mark.parametrize("slot", [torch.zeros(3, dtype=torch.int8), torch.zeros(2), torch.zeros(0)])
def test_partitions_of_another_kind_are_refused(slot: Tensor) -> None:
    ours: Any = SimpleNamespace(ds_tensor=slot, ds_numel=5, ds_shape=(5,), dtype=torch.float32, requires_grad=True)
    source = ParameterSource({"norm": ours}, {}, 0, 2, lambda tensors: nullcontext())
    with pytest.raises(WeightTransferError, match="not the 3 elements of an equal share"):
        source.part([TensorSpec("norm", (5,), "float32", 20)], False)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_is_what_the_parts_of_all_ranks_are(merge: bool, dtype: torch.dtype) -> None:
    gathered: list[int] = []

    def gather(parameters: list[Tensor]) -> Any:
        gathered.append(len(parameters))
        return nullcontext()

    parameters, factors = model(0, dtype), adapters(dtype)
    for ranks in (1, 3):
        made = [ParameterSource(parameters, factors, rank, ranks, gather) for rank in range(ranks)]
        plan = made[0].plan(BUCKET, [None if merge else ""])
        gathered.clear()
        for bucket in plan.buckets:
            parts = [source.part(bucket, merge) for source in made]
            for source in made:
                for piece, flat in source.whole(bucket, merge):
                    expected = to_numpy(flat).reshape(SHAPES[piece.name])
                    assert np.array_equal(whole_tensors(plan.manifest, parts)[piece.name], expected)
                    assert (piece.start, piece.count) == (0, flat.numel())
    # Each of three ranks gathers four tensors and, to merge, two factors; `part` gathers the two factors once more.
    assert sum(gathered) == 3 * (4 + 4 * merge)
