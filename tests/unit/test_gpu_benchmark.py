"""What the GPU benchmark calculates, against numbers worked by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cai_dist.types import Span

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHAPE = SimpleNamespace(
    num_hidden_layers=2, hidden_size=10, intermediate_size=20, num_attention_heads=3, num_key_value_heads=1,
    head_dim=4, vocab_size=50,
)  # fmt: skip


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def flops() -> Any:
    import gpu_flops

    return gpu_flops


def test_the_blocks_have_four_attention_and_three_mlp_matrices() -> None:
    # Queries and output 10 x 12 each, keys and values 10 x 4 each, gate, up and down 10 x 20 each; two layers.
    assert flops().body_parameters(SHAPE) == 2 * (120 + 120 + 40 + 40 + 600) == 1840


def test_a_pass_is_two_flops_a_parameter_and_token_and_half_of_the_attention_matrices() -> None:
    work = flops().Work(tokens=7, squares=3 * 3 + 4 * 4, scored=5)
    # 2 x 1840 x 7; the output layer 2 x 50 x 10 for five tokens. Attention: two products of 2 n^2 x 12, in two layers,
    # half of it hidden by causality: 2 x 12 x 25 x 2.
    assert flops().forward_flops(SHAPE, work) == 25_760 + 5_000 + 1_200
    assert flops().training_flops(SHAPE, work) == 3 * 31_960 == 6 * (1840 * 7 + 500 * 5) + 6 * 2 * 12 * 25


def test_parameters_are_those_of_the_model_that_is_made() -> None:
    from gpu_ppo import model_config
    from transformers import LlamaForCausalLM

    args = SimpleNamespace(
        vocabulary=50, hidden=8, intermediate=20, layers=2, head_dim=4, key_heads=1, tiny=True, gpu=False
    )
    config = model_config(args)
    matrices = [p.numel() for p in LlamaForCausalLM(config).parameters() if p.ndim == 2]
    assert sum(matrices) == flops().body_parameters(config) + config.vocab_size * config.hidden_size


def test_a_device_is_known_by_the_most_telling_part_of_its_name() -> None:
    peak = flops().peak
    assert peak("NVIDIA H100 80GB HBM3", 1.0) == (989.4e12, "data sheet")
    assert peak("NVIDIA H100 PCIe", 1.0) == (756e12, "data sheet")
    assert peak("some card", 3.0) == (3.0, "measured matrix product")


def test_work_and_time_are_counted_over_all_samples_and_workers() -> None:
    from gpu_ppo import covered, work_of

    samples = [
        SimpleNamespace(prompt_ids=(1, 2), response_ids=(3,)),
        SimpleNamespace(prompt_ids=(1,), response_ids=(2,) * 4),
    ]
    assert work_of(samples) == flops().Work(tokens=8, squares=9 + 25, scored=5)
    spans = [Span("policy", 0, "a", 1.0, 3.0), Span("value", 0, "b", 2.0, 5.0), Span("policy", 0, "a", 7.0, 8.0)]
    assert covered(spans, ("a",)) == 3.0
    assert covered(spans, ("a", "b")) == 5.0, "two at the same time are one"


def test_readings_of_the_device_belong_to_the_phase_in_which_they_were_made() -> None:
    from gpu_memory import DeviceMemory

    memory = DeviceMemory(False)
    memory.readings = [(0.5, 100.0), (1.5, 300.0), (2.5, 200.0), (9.0, 900.0)]
    spans = [Span("policy", 0, "a", 1.0, 3.0), Span("policy", 0, "b", 4.0, 5.0)]
    assert memory.peaks(spans, {"one": ("a",), "two": ("b",)}) == {"one": 300.0}
