"""Schedules and the order of data. Rows 9, 10, 13 and 26 of the list of known RLHF bugs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_dist.config.training import ShardingConfig
from cai_dist.data.schedule import (
    COST_LENGTH,
    BatchPlan,
    MicroBatchLimits,
    epoch_order,
    plan_items,
    plan_schedule,
    step_indices,
    steps_per_epoch,
    token_count,
)
from cai_dist.errors import DataError
from cai_dist.types import Generation, ScoredPair, TokenSequence

ragged = st.lists(st.integers(1, 4000), max_size=60)


def cost(length: int) -> float:
    return length + length * length / COST_LENGTH


def check(plan: BatchPlan, lengths: list[int], ranks: int) -> None:
    """What holds for every plan."""
    assert len(plan.parts) == ranks
    assert len({len(rank) for rank in plan.parts}) == 1 and len(plan.parts[0]) >= 1, "as many passes on every rank"
    assert sorted(i for rank in plan.parts for part in rank for i in part) == list(range(len(lengths))), "each once"
    loads = [sum(cost(lengths[i]) for part in rank for i in part) for rank in plan.parts]
    longest = cost(max(lengths, default=0))
    assert max(loads) <= sum(loads) / ranks + longest + 1e-6, "ranks are balanced"
    split = plan.split([f"item {i}" for i in range(len(lengths))])
    assert plan.restore([[x for part in rank for x in part] for rank in split]) == [
        f"item {i}" for i in range(len(lengths))
    ]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 8, 100])
def test_every_count_and_number_of_ranks(micro_batch: int, padded: bool) -> None:
    for count in range(65):
        lengths = [1 + 37 * i % 50 for i in range(count)]
        for ranks in range(1, 9):
            plan = plan_schedule(lengths, ranks, MicroBatchLimits(micro_batch, padded=padded))
            check(plan, lengths, ranks)
            assert all(len(part) <= micro_batch for rank in plan.parts for part in rank)
            # No more passes than needed, and no rank with two items more than another.
            assert len(plan.parts[0]) == max(1, -(-count // (ranks * micro_batch)))
            sizes = [sum(map(len, rank)) for rank in plan.parts]
            assert max(sizes) - min(sizes) <= 1


def test_every_count_and_number_of_ranks_under_a_cap() -> None:
    for count in range(65):
        lengths = [1 + 37 * i % 50 for i in range(count)]
        for ranks in range(1, 9):
            plan = plan_schedule(lengths, ranks, MicroBatchLimits(1, 64))
            check(plan, lengths, ranks)


@settings(max_examples=200)
@given(ragged, st.integers(1, 8), st.integers(1, 9))
def test_by_count(lengths: list[int], ranks: int, micro_batch: int) -> None:
    for padded in (False, True):
        plan = plan_schedule(lengths, ranks, MicroBatchLimits(micro_batch, padded=padded))
        check(plan, lengths, ranks)
        assert plan == plan_schedule(list(lengths), ranks, MicroBatchLimits(micro_batch, padded=padded))


@settings(max_examples=300)
@given(ragged, st.integers(1, 8), st.integers(0, 6000))
def test_by_tokens(lengths: list[int], ranks: int, spare: int) -> None:
    cap = max(lengths, default=1) + spare
    plan = plan_schedule(lengths, ranks, MicroBatchLimits(1, cap))
    check(plan, lengths, ranks)
    sums = [[sum(lengths[i] for i in part) for part in rank] for rank in plan.parts]
    assert all(tokens <= cap for rank in sums for tokens in rank), "the cap is hard"
    # First-fit-decreasing leaves at most one micro-batch half empty: some rank needs this many.
    assert len(sums[0]) <= max(1, *(1 + 2 * sum(rank) / cap for rank in sums))


@settings(max_examples=200)
@given(ragged, st.integers(1, 8), st.integers(0, 6000))
def test_by_padded_tokens(lengths: list[int], ranks: int, spare: int) -> None:
    cap = max(lengths, default=1) + spare
    plan = plan_schedule(lengths, ranks, MicroBatchLimits(1, cap, padded=True))
    check(plan, lengths, ranks)
    for rank in plan.parts:
        for part in rank:
            assert len(part) * max((lengths[i] for i in part), default=0) <= cap


def test_a_token_plan_by_hand() -> None:
    """Two ranks get 9+2 and 7+4 tokens; under a cap of 9 both need two micro-batches."""
    plan = plan_schedule([4, 9, 2, 7], 2, MicroBatchLimits(1, 9))
    assert plan.parts == (((1,), (2,)), ((3,), (0,)))
    assert plan_schedule([4, 9, 2, 7], 2, MicroBatchLimits(1, 11)).parts == (((1, 2),), ((0, 3),))


def test_a_count_plan_by_hand() -> None:
    """The second round goes the other way: 4 + 1 and 3 + 2 tokens, over ranks and over micro-batches alike."""
    assert plan_schedule([4, 3, 2, 1], 2, MicroBatchLimits(2)).parts == (((0, 3),), ((1, 2),))
    assert plan_schedule([4, 3, 2, 1], 1, MicroBatchLimits(2)).parts == (((0, 3), (1, 2)),)


def test_micro_batches_of_a_rank_are_level() -> None:
    """Filled up they would hold 8, 8 and 2 tokens."""
    plan = plan_schedule([2] * 9, 1, MicroBatchLimits(1, 8))
    assert [sum(2 for _ in part) for part in plan.parts[0]] == [6, 6, 6]


def test_a_level_that_breaks_the_cap_is_not_tried() -> None:
    """Each to the lightest: 7+4 and 5+4, with no room for the last 4 under 12; filled they are 12 and 12."""
    plan = plan_schedule([7, 5, 4, 4, 4], 1, MicroBatchLimits(1, 12))
    assert plan.parts == (((0, 1), (2, 3, 4)),)


def test_rows_of_like_length_share_a_padded_micro_batch() -> None:
    plan = plan_schedule([9, 1, 8, 2, 9, 1], 1, MicroBatchLimits(3, padded=True))
    assert plan.parts == (((0, 2, 4), (1, 3, 5)),)


def test_what_does_not_fit_is_one_line() -> None:
    with pytest.raises(DataError, match=r"^max_tokens_per_micro_batch=10: an example has 11 tokens; raise it[^\n]*$"):
        plan_schedule([3, 11], 2, MicroBatchLimits(8, 10))


def test_lost_or_extra_results_are_noticed() -> None:
    plan = plan_schedule([1, 1, 1], 2, MicroBatchLimits(1))
    with pytest.raises(ValueError, match=r"\[2, 1\] items .* \[2, 0\]"):
        plan.restore([[1, 2], []])
    for ranks, items in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            plan_schedule([1], ranks, MicroBatchLimits(items))


def test_what_items_count() -> None:
    pair = ScoredPair((1, 2, 3), (4,), 0.5)
    sample = Generation((1, 2), (3, 4, 5), (), "stop", 0)
    sequence = TokenSequence((1, 2), (0.0, 1.0))
    assert [token_count(item) for item in (pair, sample, sequence)] == [4, 5, 2]
    assert [token_count(item, padded=True) for item in (pair, sample, sequence)] == [6, 5, 2]
    sharding = ShardingConfig(micro_batch=2, max_tokens_per_micro_batch=6)
    assert len(plan_items([pair] * 2, 1, sharding, "packed").parts[0]) == 2
    assert len(plan_items([pair] * 2, 1, ShardingConfig(micro_batch=2), "packed").parts[0]) == 1


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


def test_ranks_that_compute_sequences_together_have_the_same_items() -> None:
    items = [TokenSequence((1,) * n, (1.0,) * n) for n in (5, 9, 3, 7, 2)]
    sharding = ShardingConfig(ranks=4, sequence_parallel=2, micro_batch=2)
    plan = plan_items(items, 4, sharding, "packed")
    assert plan.parts[0] == plan.parts[1] and plan.parts[2] == plan.parts[3]
    assert plan.parts[::2] == plan_items(items, 2, ShardingConfig(ranks=2, micro_batch=2), "packed").parts
    each = [[(rank, i) for part in parts for i in part] for rank, parts in enumerate(plan.parts)]
    assert [i for _, i in plan.restore(each)] == list(range(5)), "each once, in the order of the items"
    assert {rank for rank, _ in plan.restore(each)} == {0, 2}, "the first of each group says it"
