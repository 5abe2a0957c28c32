"""A slice of a cut parameter: what pads it is no part of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cai_dist.engines.training import finite
from cai_dist.errors import DataError, NonFiniteError
from cai_dist.models import load
from cai_dist.models.partition import change, held
from cai_dist.models.sharded import _tie

NAN = float("nan")
RANKS, ELEMENTS = 3, 10
"""Slices of four; the last one has two elements and two that pad it."""


@dataclass
class Place:
    """A partition as one of its ranks sees it; the others agree."""

    rank: int
    ranks: int = RANKS

    def everywhere(self, here: bool) -> bool:
        return here


def cut(rank: int, padding: float = NAN) -> Any:
    """A parameter 0, 1, ... 9 as `rank` holds it."""
    parameter: Any = nn.Parameter(torch.empty(0))
    whole = torch.cat([torch.arange(float(ELEMENTS)), torch.full((2,), padding)])
    parameter.ds_numel, parameter.ds_shape, parameter.ds_tensor = ELEMENTS, (ELEMENTS,), whole[4 * rank : 4 * rank + 4]
    return parameter


def model_of(**parameters: Any) -> nn.Module:
    model = nn.Module()
    for name, parameter in parameters.items():
        model.register_parameter(name, parameter)
    return model


def test_a_rank_holds_its_elements_and_no_padding() -> None:
    assert [held(cut(rank), rank, RANKS).tolist() for rank in range(RANKS)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    short: Any = cut(0)
    short.ds_numel = 1
    assert [len(held(short, rank, RANKS)) for rank in range(RANKS)] == [1, 0, 0]
    whole = nn.Parameter(torch.ones(2, 3))
    assert held(whole, 1, RANKS).shape == (2, 3)


def test_a_change_starts_where_the_slice_does() -> None:
    seen: list[tuple[list[float], int]] = []

    def new(mine: Tensor, start: int) -> Tensor:
        seen.append((mine.tolist(), start))
        return -mine

    parameter = cut(2)
    change(parameter, new, Place(2))  # type: ignore[arg-type]
    assert seen == [([8.0, 9.0], 8)] and parameter.ds_tensor[:2].tolist() == [-8.0, -9.0]


@pytest.mark.parametrize("rank", range(RANKS))
def test_padding_that_is_no_number_refuses_no_model(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    load._refuse_non_finite("here", model_of(w=cut(rank)), Place(rank))  # type: ignore[arg-type]
    monkeypatch.setattr(finite.dist, "get_rank", lambda: rank)
    monkeypatch.setattr(finite.dist, "get_world_size", lambda: RANKS)
    monkeypatch.setattr(finite.dist, "all_reduce", lambda tensor: None)
    finite.refuse_weights(model_of(w=cut(rank)), torch.device("cpu"), 3, "checkpoint")


def test_a_weight_that_is_no_number_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = cut(2)
    bad.ds_tensor[1] = NAN
    with pytest.raises(DataError, match="not finite"):
        load._refuse_non_finite("here", model_of(w=bad), Place(2))  # type: ignore[arg-type]
    monkeypatch.setattr(finite.dist, "get_rank", lambda: 2)
    monkeypatch.setattr(finite.dist, "get_world_size", lambda: RANKS)
    monkeypatch.setattr(finite.dist, "all_reduce", lambda tensor: None)
    with pytest.raises(NonFiniteError):
        finite.refuse_weights(model_of(w=bad), torch.device("cpu"), 3, "checkpoint")


def test_two_that_are_equal_but_for_their_padding_are_tied() -> None:
    for other, tied in ((cut(2, 5.0), True), (cut(1), False)):
        model: Any = model_of(a=cut(2), b=other)
        model.all_tied_weights_keys = {"b": "a"}
        _tie(model, set(), Place(2))  # type: ignore[arg-type]
        assert (model.b is model.a) == tied
