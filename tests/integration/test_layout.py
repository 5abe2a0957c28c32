"""Packed and padded passes, token budgets and chunks of the output layer under every ZeRO stage, as plain torch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cai_dist.config.training import ShardingConfig
from cai_dist.data.batches import loss_weight
from cai_dist.data.schedule import plan_items
from tests.integration.test_zero import plain_losses, ragged_batches
from tests.integration.train_bench import TrainBench, run_steps
from tests.tiny import save_llama


@pytest.mark.parametrize("tied", [True, False])
def test_ranks_with_other_numbers_of_chunks_train_as_plain_torch_does(
    bench: TrainBench, tied: bool, tmp_path: Path
) -> None:
    """Under ZeRO-3 a call of the output layer is a collective: with one for each chunk these ranks would not meet."""
    model = save_llama(tmp_path, tied=tied, seed=1, std=0.05)
    batches = ragged_batches(3, 5)
    limits = ShardingConfig(micro_batch=1, max_tokens_per_micro_batch=24)
    ranks = plan_items(batches[0], 2, limits, "packed").split(batches[0])
    chunks = [[math.ceil(sum(loss_weight([item]) for item in part) / 8) for part in rank] for rank in ranks]
    assert chunks[0] != chunks[1] and max(map(max, chunks)) > 1
    expected = plain_losses(model, batches)
    for zero in range(4):
        group = bench.make("tests.integration.chunks:ChunkedWorker", model, ranks=2, zero=zero, micro_batch=1)
        found = run_steps(group, batches, 1, loss_weight, max_tokens=24)
        assert [m["loss"] for m in found] == pytest.approx(expected, rel=1e-5), zero


def test_a_padded_pass_trains_the_same(bench: TrainBench, tmp_path: Path) -> None:
    model = save_llama(tmp_path, tied=True, seed=1, std=0.05)
    batches = ragged_batches(3, 5)
    group = bench.make("language:LanguageWorker", model, ranks=2, zero=2, micro_batch=2, layout="padded")
    found = [m["loss"] for m in run_steps(group, batches, 2, loss_weight)]
    assert found == pytest.approx(plain_losses(model, batches), rel=1e-5)
