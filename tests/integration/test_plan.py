"""What the plan says that a rank holds is what DeepSpeed holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai_dist.config.training import Dtype, ShardingConfig
from cai_dist.data.batches import loss_weight
from cai_dist.plan.disk import checkpoint_bytes
from cai_dist.plan.roles import trained_elements
from cai_dist.plan.shapes import shape_of
from cai_dist.plan.zero import ITEM, Zero, states
from cai_dist.types import TokenSequence
from tests.integration.train_bench import TrainBench, run_steps, use
from tests.tiny import save_llama

CASES: list[tuple[int, int, Dtype]] = [(1, 0, "fp32"), (2, 0, "bf16"), *((2, z, "fp32") for z in (1, 2, 3))]
CASES += [(2, 1, "bf16"), (2, 2, "bf16"), (2, 3, "bf16"), (1, 3, "bf16")]


@pytest.mark.parametrize(("ranks", "zero", "dtype"), CASES)
def test_states_of_every_stage(bench: TrainBench, tmp_path: Path, ranks: int, zero: int, dtype: Dtype) -> None:
    model = save_llama(tmp_path, tied=False, seed=1, layers=3)
    shape = shape_of(json.loads((tmp_path / "config.json").read_text("utf-8")), model)
    kind = "tests.integration.held:HeldWorker"
    group = bench.make(kind, model, ranks=ranks, zero=zero, micro_batch=2, dtype=dtype)
    run_steps(group, [[TokenSequence((1, 2, 3, 4), (0.0, 1.0, 1.0, 1.0))] * 4], 2, loss_weight)
    elements = trained_elements(shape, None, causal=True)
    said = states(elements, Zero(zero, ranks, ITEM[dtype]), 1, on_gpu=False)
    kept = said.optimizer + said.always
    for weights, optimizer in use(group, "held"):
        # Not counted: rotary angles, step counters, padding.
        assert weights == pytest.approx(said.weights, rel=0.01)
        assert optimizer == pytest.approx(kept, rel=0.01)
    use(group, "save", str(tmp_path / "saved"))
    written = sum(path.stat().st_size for path in (tmp_path / "saved").rglob("*.pt"))
    sharding = ShardingConfig(ranks=ranks, zero=zero)  # type: ignore[arg-type]
    assert written == pytest.approx(checkpoint_bytes(elements, sharding, ITEM[dtype]), rel=0.1)
