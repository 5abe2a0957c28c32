"""The batch identity, even and uneven."""

from __future__ import annotations

import pytest

from cai_dist.config.training import ShardingConfig
from cai_dist.data.schedule import MicroBatchLimits, plan_schedule
from cai_dist.plan.batches import rollout_equation, split


def test_an_even_step() -> None:
    found = split("policy", 64, ShardingConfig(ranks=4, micro_batch=2), 100)
    assert found.equation() == "64 = 4 ranks x 2 sequences x 8 passes"
    assert found.remark() == ""


def test_an_uneven_step_says_how_much_is_empty_and_what_is_even() -> None:
    found = split("policy", 64, ShardingConfig(ranks=4, micro_batch=12), 100)
    assert found.equation() == "64 = 4 ranks x 12 sequences x 2 passes - 32 empty places"
    assert "33% of the places stay empty" in found.remark() and "micro_batch 8 is even" in found.remark()
    found = split("policy", 64, ShardingConfig(ranks=3, micro_batch=8), 100)
    assert found.equation() == "64 = 3 ranks x 8 sequences x 3 passes - 8 empty places"
    assert "no micro-batch of 3 ranks divides 64" in found.remark()


def test_ranks_that_compute_sequences_together_are_one_in_the_batch() -> None:
    found = split("policy", 64, ShardingConfig(ranks=4, sequence_parallel=2, micro_batch=2), 100)
    assert found.equation() == "64 = 2 groups of 2 ranks x 2 sequences x 16 passes"


def test_a_cap_on_tokens_is_sequences_of_full_length() -> None:
    sharding = ShardingConfig(ranks=2, micro_batch=64, max_tokens_per_micro_batch=1000)
    assert split("policy", 16, sharding, 300).micro_batch == 3
    assert split("preference", 16, sharding, 300, per_item=2).micro_batch == 1


@pytest.mark.parametrize(("batch", "ranks", "micro"), [(64, 4, 2), (7, 2, 2), (3, 4, 8), (33, 4, 4)])
def test_passes_are_those_of_the_schedule_that_runs(batch: int, ranks: int, micro: int) -> None:
    plan = plan_schedule([50] * batch, ranks, MicroBatchLimits(micro))
    found = split("policy", batch, ShardingConfig(ranks=ranks, micro_batch=micro), 50)
    assert {len(part) for part in plan.parts} == {found.passes}


def test_an_iteration() -> None:
    assert rollout_equation(256, 1, 64, 1) == (
        "256 prompts x 1 sample = 256 = 4 mini-batches x 64; 1 epoch: 4 optimiser steps an iteration"
    )
    assert "8 prompts x 4 samples = 32 = 1 mini-batch x 32; 2 epochs: 2 optimiser steps" in rollout_equation(
        8, 4, 32, 2
    )
