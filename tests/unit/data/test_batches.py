"""Padding, schedules and the order of data. Rows 2, 9, 10, 13 and 26 of the list of known RLHF bugs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_dist.data.batches import (
    align,
    epoch_order,
    pad_sequences,
    pair_batch,
    response_rows,
    sample_batch,
    schedule,
    sequence_batch,
    step_indices,
    steps_per_epoch,
    trajectory_batch,
    unschedule,
)
from cai_dist.types import Generation, ScoredPair, TokenSequence, Trajectory

ids = st.lists(st.integers(0, 9), min_size=1, max_size=6).map(tuple)


def generation(prompt: tuple[int, ...], response: tuple[int, ...]) -> Generation:
    return Generation(prompt, response, (0.0,) * len(response), "stop", 0)


# schedules


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 8, 100])
def test_every_rank_gets_as_many_micro_batches(micro_batch: int) -> None:
    for count in range(65):
        for ranks in range(1, 9):
            parts = schedule(range(count), ranks, micro_batch)
            assert len(parts) == ranks
            assert len({len(part) for part in parts}) == 1 and len(parts[0]) >= 1
            assert all(len(micro) <= micro_batch for part in parts for micro in part)
            # No more passes than needed, and no rank with two items more than another.
            assert len(parts[0]) == max(1, -(-count // (ranks * micro_batch)))
            sizes = [sum(map(len, part)) for part in parts]
            assert max(sizes) - min(sizes) <= 1
            # Each item exactly once, and back in order.
            answers = [[item * 10 for micro in part for item in micro] for part in parts]
            assert unschedule(answers, count) == [item * 10 for item in range(count)]


def test_five_over_four_ranks_by_hand() -> None:
    assert schedule("abcde", 4, 1) == [((), ("a",)), ((), ("b",)), ((), ("c",)), (("d",), ("e",))]


def test_lost_or_extra_results_are_noticed() -> None:
    with pytest.raises(ValueError, match=r"3 items .* \[2, 0\]"):
        unschedule([[1, 2], []], 3)
    with pytest.raises(ValueError, match="at least 1"):
        schedule([1], 0, 1)
    with pytest.raises(ValueError, match="at least 1"):
        schedule([1], 1, 0)


# order of data


def test_an_epoch_sees_everything_once_and_the_next_in_another_order() -> None:
    n, batch = 23, 4
    steps = steps_per_epoch(n, batch)
    assert steps == 6
    epochs = [[i for s in range(steps) for i in step_indices(n, batch, 7, e * steps + s)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert [len(step_indices(n, batch, 7, s)) for s in range(7)] == [4, 4, 4, 4, 4, 3, 4]


def test_a_step_depends_on_nothing_but_its_number() -> None:
    forward = [step_indices(10, 3, 1, s) for s in range(12)]
    epoch_order.cache_clear()
    backward = [step_indices(10, 3, 1, s) for s in reversed(range(12))]
    assert forward == backward[::-1]
    assert forward != [step_indices(10, 3, 2, s) for s in range(12)]


def test_the_order_is_the_same_in_every_version() -> None:
    """A checkpoint of yesterday must go on today: these numbers may not change."""
    assert epoch_order(8, 0, 0) == (0, 2, 1, 4, 6, 7, 3, 5)


def test_a_batch_larger_than_the_data_still_trains() -> None:
    assert sorted(step_indices(3, 8, 0, 5)) == [0, 1, 2]
    with pytest.raises(ValueError, match="n=0"):
        step_indices(0, 8, 0, 0)


# tensors


def test_padding_by_hand() -> None:
    padded, lengths = pad_sequences([(5, 6, 7), (8,)], pad_id=3)
    assert padded.tolist() == [[5, 6, 7], [8, 3, 3]] and lengths.tolist() == [3, 1]
    assert padded.dtype == lengths.dtype == torch.long
    for bad in ([], [(1,), ()]):
        with pytest.raises(ValueError, match="at least one"):
            pad_sequences(bad)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=5))
def test_masks_follow_lengths_and_rows_come_back(samples: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    """The padding id 0 also occurs as a token: no mask may tell by the id."""
    batch = sample_batch([generation(*sample) for sample in samples])
    assert len(batch) == len(samples) and batch.valid.all()
    for row, (prompt, response) in enumerate(samples):
        assert batch.ids[row][batch.attention_mask[row].bool()].tolist() == [*prompt, *response]
        assert batch.ids[row][batch.response_mask[row]].tolist() == [*response]
    numbers = [[float(token) + 0.5 for token in response] for _, response in samples]
    aligned = align(batch, numbers)
    assert response_rows(batch, aligned) == numbers
    assert (aligned[~batch.response_mask] == 0).all()


def test_numbers_that_do_not_fit_are_refused() -> None:
    batch = sample_batch([generation((1,), (2, 3))])
    with pytest.raises(ValueError, match="2 lists for 1 rows"):
        align(batch, [[1.0, 2.0], [1.0]])
    with pytest.raises(ValueError, match="row 0: 1 numbers for 2"):
        align(batch, [[1.0]])


def test_weights_go_with_their_tokens() -> None:
    batch, weights = sequence_batch([TokenSequence((1, 2, 3), (1.0, 0.0, 0.5)), TokenSequence((4, 5), (0.0, 1.0))])
    assert weights.tolist() == [[0.0, 0.0, 0.5], [0.0, 1.0, 0.0]]  # position 0 is never predicted
    assert batch.prompt_lengths.tolist() == [2, 1] and batch.lengths.tolist() == [3, 2]
    with pytest.raises(ValueError, match="2 tokens has 1 weights"):
        sequence_batch([TokenSequence((1, 2), (1.0,))])


def test_pairs_share_one_batch() -> None:
    batch = pair_batch([ScoredPair((1, 2), (3,), 0.9), ScoredPair((4,), (5, 6, 7), 0.2)])
    assert batch.tokens.ids.tolist() == [[1, 2, 0], [4, 0, 0], [3, 0, 0], [5, 6, 7]]
    assert batch.tokens.lengths.tolist() == [2, 1, 1, 3] and batch.valid.tolist() == [True, True]
    a, b = batch.split(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert a.tolist() == [1.0, 2.0] and b.tolist() == [3.0, 4.0]
    assert batch.p_a.tolist() == pytest.approx([0.9, 0.2])


def test_trajectories_line_up_with_their_tokens() -> None:
    one = Trajectory(
        (1, 2), (3, 4), (-1.0, -2.0), (0.0, 0.0), (5.0, 6.0), (0.0, 0.0), (7.0, 8.0), (9.0, 10.0), 0.0, "stop", 0
    )
    batch = trajectory_batch([one])
    assert batch.tokens.ids.tolist() == [[1, 2, 3, 4]]
    assert batch.old_logprobs.tolist() == [[0, 0, -1, -2]] and batch.old_values.tolist() == [[0, 0, 5, 6]]
    assert batch.advantages.tolist() == [[0, 0, 7, 8]] and batch.returns.tolist() == [[0, 0, 9, 10]]


def test_an_empty_micro_batch_is_a_row_in_no_mask() -> None:
    batches = [sample_batch([]), sequence_batch([])[0], trajectory_batch([]).tokens, pair_batch([]).tokens]
    for batch in batches:
        assert len(batch) == 0 and batch.ids.shape[0] >= 1
        assert batch.attention_mask.all() and not batch.response_mask.any() and not batch.valid.any()
        assert response_rows(batch, batch.ids.float()) == []
        assert len(batch.to("cpu")) == 0
    assert sequence_batch([])[1].sum() == 0
    assert pair_batch([]).valid.tolist() == [False] and trajectory_batch([]).advantages.shape == batches[2].ids.shape
