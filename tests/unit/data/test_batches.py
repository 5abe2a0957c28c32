"""Flat batches. Rows 2 and 9 of the list of known RLHF bugs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_dist.data.batches import (
    align,
    flatten,
    pair_batch,
    response_rows,
    sample_batch,
    sequence_batch,
    trajectory_batch,
)
from cai_dist.types import Generation, ScoredPair, TokenSequence, Trajectory

LISTS = (
    "old_logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns", "sampler_logprobs", "weights",
)  # fmt: skip
ids = st.lists(st.integers(0, 9), min_size=1, max_size=6).map(tuple)


def generation(prompt: tuple[int, ...], response: tuple[int, ...]) -> Generation:
    return Generation(prompt, response, (0.0,) * len(response), "stop", 0)


def trajectory(prompt: tuple[int, ...], response: tuple[int, ...], **lists: tuple[float, ...]) -> Trajectory:
    zeros = dict.fromkeys(LISTS, (0.0,) * len(response))
    return Trajectory(prompt, response, score=0.0, finish="stop", weight_version=0, **(zeros | lists))


def test_sequences_one_after_the_other_by_hand() -> None:
    flat, lengths = flatten([(5, 6, 7), (8,)])
    assert flat.tolist() == [5, 6, 7, 8] and lengths.tolist() == [3, 1]
    assert flat.dtype == lengths.dtype == torch.long
    for bad in ([], [(1,), ()]):
        with pytest.raises(ValueError, match="at least one"):
            flatten(bad)


def test_where_sequences_are_by_hand() -> None:
    batch = sample_batch([generation((1, 2), (3,)), generation((4,), (5, 6, 7)), generation((8,), (9,))])
    assert batch.starts.tolist() == [0, 3, 7] and batch.last.tolist() == [2, 6, 8]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1]
    assert batch.response_mask.int().tolist() == [0, 0, 1, 0, 1, 1, 1, 0, 1]


@settings(max_examples=60)
@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=5))
def test_masks_follow_lengths_and_rows_come_back(samples: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    """The id 0 of the stand-in also occurs as a token: no mask may tell by the id."""
    batch = sample_batch([generation(*sample) for sample in samples])
    assert len(batch) == len(samples)
    for row, (prompt, response) in enumerate(samples):
        here = slice(int(batch.starts[row]), int(batch.last[row]) + 1)
        assert batch.ids[here].tolist() == [*prompt, *response]
        assert batch.positions[here].tolist() == list(range(len(prompt) + len(response)))
        assert batch.ids[here][batch.response_mask[here]].tolist() == [*response]
    numbers = [[float(token) + 0.5 for token in response] for _, response in samples]
    aligned = align(batch, numbers)
    assert aligned.shape == batch.ids.shape and [row.tolist() for row in response_rows(batch, aligned)] == numbers
    assert (aligned[~batch.response_mask] == 0).all()


def test_what_others_said_in_a_response_is_in_no_mask() -> None:
    talk = replace(generation((1, 2), (3, 4, 5, 6, 7)), loss_mask=np.array([1, 0, 0, 1, 1], bool))
    batch = sample_batch([generation((8,), (9, 9)), talk, generation((4,), (5,))])
    assert batch.response_mask.int().tolist() == [0, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0, 1]
    rows = [[0.5, 1.5], [2.5, 3.5, 4.5], [5.5]]
    aligned = align(batch, rows)
    assert aligned.tolist() == [0, 0.5, 1.5, 0, 0, 2.5, 0, 0, 3.5, 4.5, 0, 5.5]
    assert [row.tolist() for row in response_rows(batch, aligned)] == rows
    with pytest.raises(ValueError, match="sequence 1: 5 numbers for 3 response tokens"):
        align(batch, [rows[0], [1.0] * 5, rows[2]])
    learned = trajectory((1, 2), (3, 4, 5), advantages=(1.0, 2.0), weights=(1.0, 1.0))
    numbers = {name: np.ones(2, np.float32) for name in LISTS if name not in ("advantages", "weights")}
    learned = replace(learned, loss_mask=np.array([1, 0, 1], bool), **numbers)
    made = trajectory_batch([learned])
    assert made.advantages.tolist() == [0, 0, 1, 0, 2] and made.old_logprobs.tolist() == [0, 0, 1, 0, 1]


def test_numbers_that_do_not_fit_are_refused() -> None:
    batch = sample_batch([generation((1,), (2, 3))])
    with pytest.raises(ValueError, match="2 lists for 1 sequences"):
        align(batch, [[1.0, 2.0], [1.0]])
    with pytest.raises(ValueError, match="sequence 0: 1 numbers for 2"):
        align(batch, [[1.0]])


def test_weights_go_with_their_tokens() -> None:
    batch, weights = sequence_batch([TokenSequence((1, 2, 3), (1.0, 0.0, 0.5)), TokenSequence((4, 5), (0.0, 1.0))])
    assert weights.tolist() == [0.0, 0.0, 0.5, 0.0, 1.0]  # position 0 is never predicted
    assert batch.prompt_lengths.tolist() == [2, 1] and batch.lengths.tolist() == [3, 2]
    with pytest.raises(ValueError, match="2 tokens has 1 weights"):
        sequence_batch([TokenSequence((1, 2), (1.0,))])


def test_pairs_share_one_batch() -> None:
    batch = pair_batch([ScoredPair((1, 2), (3,), 0.9), ScoredPair((4,), (5, 6, 7), 0.2)])
    assert batch.tokens.ids.tolist() == [1, 2, 4, 3, 5, 6, 7]
    assert batch.tokens.lengths.tolist() == [2, 1, 1, 3] and batch.valid.tolist() == [True, True]
    assert batch.tokens.last.tolist() == [1, 2, 3, 6]
    a, b = batch.split(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert a.tolist() == [1.0, 2.0] and b.tolist() == [3.0, 4.0]
    assert batch.p_a.tolist() == pytest.approx([0.9, 0.2])


def test_trajectories_line_up_with_their_tokens() -> None:
    one = trajectory(
        (1, 2), (3, 4),
        old_logprobs=(-1.0, -2.0), ref_logprobs=(-3.0, -4.0), values=(5.0, 6.0), advantages=(7.0, 8.0),
        returns=(9.0, 10.0), weights=(1.0, 0.5),
    )  # fmt: skip
    two = trajectory((5,), (6,), values=(11.0,), weights=(2.0,))
    batch = trajectory_batch([one, two])
    assert batch.tokens.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.old_logprobs.tolist() == [0, 0, -1, -2, 0, 0] and batch.ref_logprobs.tolist() == [0, 0, -3, -4, 0, 0]
    assert batch.old_values.tolist() == [0, 0, 5, 6, 0, 11] and batch.advantages.tolist() == [0, 0, 7, 8, 0, 0]
    assert batch.returns.tolist() == [0, 0, 9, 10, 0, 0] and batch.weights.tolist() == [0, 0, 1, 0.5, 0, 2]


def test_advantages_are_whitened_on_their_way_into_a_batch() -> None:
    items = [trajectory((1, 2), (3, 4), advantages=(1e6 + 0.25, 1e6)), trajectory((5,), (6,), advantages=(1e6 - 0.5,))]
    batch = trajectory_batch(items, 1e6, 0.5)
    assert batch.advantages.tolist() == [0, 0, 0.5, 0, 0, -1.0] and batch.returns.tolist() == [0.0] * 6


def test_an_algorithm_without_values_has_zeros_and_half_a_list_is_refused() -> None:
    bare = trajectory((1, 2), (3, 4), values=(), returns=(), old_logprobs=(-1.0, -2.0))
    batch = trajectory_batch([bare, bare])
    assert batch.old_values.tolist() == batch.returns.tolist() == [0.0] * 8
    assert batch.old_logprobs.tolist() == [0, 0, -1, -2] * 2
    with pytest.raises(ValueError, match="sequence 0: 0 numbers for 2"):
        trajectory_batch([bare, trajectory((1,), (2,), values=(1.0,))])


def test_an_empty_micro_batch_is_a_sequence_in_no_mask() -> None:
    batches = [sample_batch([]), sequence_batch([])[0], trajectory_batch([]).tokens, pair_batch([]).tokens]
    for batch in batches:
        assert len(batch) == 0 and int(batch.lengths.sum()) == len(batch.ids) >= 1
        assert not batch.response_mask.any()
        assert len(response_rows(batch, batch.ids.float())) == 0
        assert len(batch.to("cpu")) == 0
    assert sequence_batch([])[1].sum() == 0
    assert pair_batch([]).valid.tolist() == [False] and trajectory_batch([]).advantages.shape == batches[2].ids.shape
