"""Carriers of arrays: what they take, what they are equal to, and how they travel."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai_dist.types import Generation, Trajectory
from cai_dist.types.ragged import Packed, Ragged

SAMPLES = [
    Generation((1, 2, 3), (4,), (-0.5,), "stop", 3),
    Generation((1,), (5, 6), (-0.25, -1.5), "length", 4, "vllm", (3, 4)),
]
lists = st.lists(st.lists(st.floats(-5, 5, width=32), max_size=4), max_size=6)


def test_lists_become_arrays_of_the_type_of_their_field() -> None:
    sample = SAMPLES[1]
    assert [getattr(sample, name).dtype for name in Generation.ARRAYS] == list(Generation.ARRAYS.values())
    assert sample.ids.tolist() == [1, 5, 6]
    assert sample.token_versions.tolist() == [3, 4] and SAMPLES[0].token_versions.tolist() == [3]
    assert set(Trajectory.ARRAYS.values()) == {"int32", "float32", "bool"}
    array = np.float32([0.5])
    assert replace(SAMPLES[0], logprobs=array).logprobs is array, "what is right is not copied"
    with pytest.raises(ValueError, match="Generation.response_ids: an array of 2 dimensions"):
        replace(sample, response_ids=[[5, 6]])


def test_equal_are_samples_with_equal_fields() -> None:
    first = SAMPLES[0]
    assert first == replace(first, logprobs=np.float32([-0.5])) and first != SAMPLES[1] and first != "first"
    for change in ({"prompt_ids": (1, 2)}, {"logprobs": (-0.75,)}, {"finish": "length"}, {"versions": (2,)}):
        assert replace(first, **change) != first
    with pytest.raises(TypeError, match="unhashable"):
        hash(first)


@given(lists)
def test_rows_come_back_from_one_flat_array(rows: list[list[float]]) -> None:
    ragged = Ragged.of(rows, np.float32)
    assert [row.tolist() for row in ragged] == rows == [ragged[i].tolist() for i in range(len(rows))]
    assert ragged.lengths.tolist() == [len(row) for row in rows] and len(ragged) == len(rows)
    assert ragged.sums().tolist() == pytest.approx([sum(row) for row in rows])
    assert pickle.loads(pickle.dumps(ragged)) == ragged
    assert Ragged.joined([Ragged.of(rows[:2], np.float32), Ragged.of(rows[2:], np.float32)], np.float32) == ragged
    longer = ragged.appended(np.arange(len(rows)))
    assert [row.tolist() for row in longer] == [[*row, i] for i, row in enumerate(rows)]
    shorter, last = longer.without_last()
    assert shorter == ragged and last.tolist() == list(range(len(rows)))


def test_rows_that_do_not_fit_and_rows_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="3 numbers for rows of 2"):
        Ragged(np.zeros(3), np.array([1, 1]))
    ragged = Ragged.of([[1.0], [2.0, 3.0]], np.float32)
    assert ragged[-1].tolist() == [2.0, 3.0] and [row.tolist() for row in ragged[1:]] == [[2.0, 3.0]]
    with pytest.raises(IndexError, match="row 2 of 2"):
        ragged[2]
    assert ragged != Ragged.of([[1.0, 2.0], [3.0]], np.float32)


def test_packed_samples_are_the_samples() -> None:
    packed = Packed.of(Generation, SAMPLES)
    assert list(packed) == SAMPLES == packed[:] and packed[1] == SAMPLES[1] and packed == SAMPLES
    again = pickle.loads(pickle.dumps(packed))
    assert again == packed and again[0].logprobs.base is not None, "views of one flat array"
    large = Ragged.of([[70_000, 2], []], np.int32)
    assert pickle.loads(pickle.dumps(large)) == large and again[0].prompt_ids.dtype == np.int32
    assert Packed.of(Generation, packed) is packed and len(Packed.of(Generation, [])) == 0
    with pytest.raises(ValueError, match="Generation: columns"):
        Packed(Generation, {"prompt_ids": [1]})


def test_a_flat_array_travels_in_a_fraction_of_the_bytes() -> None:
    rows = np.random.default_rng(0).normal(size=(64, 100)).astype(np.float32)
    assert len(pickle.dumps(Ragged.of(rows, np.float32))) < len(pickle.dumps([tuple(r) for r in rows.tolist()])) / 2
