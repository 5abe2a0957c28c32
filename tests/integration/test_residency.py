"""Memory that leaves a shared device between phases changes no bit of a training, whatever the ZeRO stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cai_dist.config.training import LoraConfig
from cai_dist.data.batches import loss_weight
from tests.integration.test_zero import LANGUAGE, ragged_batches
from tests.integration.train_bench import TrainBench, run_steps, use
from tests.tiny import save_llama

CASES = [*((zero, "fp32", False) for zero in range(4)), (1, "bf16", False), (3, "bf16", False), (2, "fp32", True)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("model"), tied=True, seed=1, std=0.05)


def train(
    bench: TrainBench, model: str, folder: Path, zero: int, dtype: str, lora: bool, moves: bool
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Six steps with a checkpoint in the middle that is loaded at the end; metrics, and the model after two more."""
    extra = {"lora": LoraConfig(rank=4)} if lora else {}
    group = bench.make(LANGUAGE, model, ranks=2, zero=zero, micro_batch=2, dtype=dtype, **extra)
    batches = ragged_batches(8, 5)
    metrics = []
    for number, batch in enumerate(batches[:6]):
        if moves:  # nothing, the weights alone, all: in every order over the steps
            for parts in [(), ("weights",), ("weights", "optimizer"), ()][number % 3 :]:
                use(group, "keep_on_device", parts)
        metrics += run_steps(group, [batch], 2, loss_weight)
        if number == 3:
            if moves:
                use(group, "keep_on_device", ())
            use(group, "save", str(folder / "checkpoint"))
    if moves:
        use(group, "keep_on_device", ())
    use(group, "load", str(folder / "checkpoint"))
    metrics += run_steps(group, batches[6:], 2, loss_weight)
    if moves:
        assert use(group, "keep_on_device", ()) == [{}, {}]
    use(group, "export", str(folder / "model"))
    return metrics, load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize(("zero", "dtype", "lora"), CASES)
def test_a_training_whose_memory_moves_is_the_same(
    bench: TrainBench, model: str, tmp_path: Path, zero: int, dtype: str, lora: bool
) -> None:
    plain, expected = train(bench, model, tmp_path / "plain", zero, dtype, lora, moves=False)
    moved, found = train(bench, model, tmp_path / "moved", zero, dtype, lora, moves=True)
    assert moved == plain
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("zero", range(4))
def test_the_memory_is_given_up(bench: TrainBench, model: str, zero: int) -> None:
    group = bench.make(LANGUAGE, model, ranks=2, zero=zero, micro_batch=2)
    run_steps(group, ragged_batches(1, 4), 2, loss_weight)
    everything = group.broadcast("held", "held_bytes")
    use(group, "keep_on_device", ("weights",))
    weights = group.broadcast("held", "held_bytes")
    use(group, "keep_on_device", ())
    nothing = group.broadcast("held", "held_bytes")
    use(group, "keep_on_device", ("weights", "optimizer"))
    again = group.broadcast("held", "held_bytes")
    assert again == everything
    for rank in range(2):
        assert everything[rank]["optimizer"] > 3 * 4 * 64 * 64  # masters or gradients, and two moments
        assert weights[rank]["weights"] == everything[rank]["weights"]
        # What is left are norms and counters of a few bytes each.
        assert weights[rank]["optimizer"] < 0.05 * everything[rank]["optimizer"]
        assert nothing[rank]["weights"] < 0.05 * everything[rank]["weights"]
