"""Bytes of one rank: by hand for 100 elements, by DeepSpeed's own estimators for 8 and 70 billion."""

from __future__ import annotations

import pytest

from cai_dist.config.training import OptimizerConfig, ShardingConfig
from cai_dist.errors import ConfigError
from cai_dist.plan.shapes import PRESETS
from cai_dist.plan.zero import ParameterCounts, States, Zero, read_zero, states

MODEL = ParameterCounts(total=100, trained=100, largest=30)


def of(stage: int, ranks: int = 4, item: int = 2, passes: int = 1, **settings: object) -> States:
    zero = Zero(stage, ranks, item, reduce_bucket=10, **settings)  # type: ignore[arg-type]
    return states(MODEL, zero, passes, on_gpu=True)


def test_bf16_by_hand() -> None:
    # weights, masters + moments, gradients kept, copies of the step
    assert _four(of(0, ranks=1)) == _four(of(0, ranks=4)) == (200, 1200, 400, 0)
    assert _four(of(1)) == (200, 12 * 25, 4 * 100 + 2 * 100, 0)
    assert _four(of(2)) == (200, 300, 100, 0)
    assert _four(of(2, passes=3)) == (200, 300, 100, 0)
    assert _four(of(3)) == (50, 300, 100, 100)
    assert [of(stage).always for stage in range(4)] == [0, 400, 0, 100]


def test_fp32_by_hand() -> None:
    assert _four(of(0, ranks=1, item=4)) == (400, 800, 400, 0)
    assert _four(of(1, item=4)) == (400, 300, 400 + 100, 100)
    assert _four(of(2, item=4)) == (400, 300, 100, 100)
    assert _four(of(2, item=4, passes=3)) == (400, 300, 200, 100)
    assert _four(of(3, item=4)) == (100, 300, 100, 100)


def _four(found: States) -> tuple[int, int, int, int]:
    return found.weights, found.optimizer, found.gradients, found.step


def test_buckets_and_gathered_weights() -> None:
    assert of(0, ranks=1, item=4).buckets == 0  # nobody to reduce with
    assert of(0, item=4).buckets == 40
    assert of(2).buckets == 2 * 20
    assert of(2, overlap=True).buckets == 3 * 20
    assert [of(stage).gathered for stage in (0, 1, 2)] == [0, 0, 0]
    assert of(3).gathered == 200 + 200  # all of a small model, and the buffer that they come in
    assert of(3, prefetch_bucket=20).gathered == 200 + 40
    assert of(3, max_live=60, prefetch_bucket=20).gathered == 120 + 40
    assert of(3, ranks=1).gathered == 0  # the only rank has all of them


def test_the_step_of_stage_3_flattens_one_sub_group_at_a_time() -> None:
    """A sub-group is full with the tensor that reaches its size, so it may be a part of the largest one longer."""
    assert of(3, ranks=1, sub_group=1000).step == 400
    assert of(3, ranks=1, sub_group=50).step == 4 * (50 + 30)
    assert of(3, ranks=4, sub_group=10).step == 4 * (10 + 8)
    assert of(2, item=4, ranks=1, sub_group=10).step == 400, "the other stages flatten all of it"
    assert read_zero(ShardingConfig(zero=3), "bf16", OptimizerConfig()).sub_group == 10**9


@pytest.mark.parametrize("size", [700, 1500, 4000, 10**9])
def test_sub_groups_are_as_long_as_deepspeed_makes_them(size: int) -> None:
    """DeepSpeed's own function, on tensors of one rank; a norm and a matrix alternate."""
    from types import SimpleNamespace

    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Stage3

    numbers = [64, 1024] * 4
    tensors = [SimpleNamespace(partition_numel=lambda number=number: number) for number in numbers]
    made = Stage3._create_fp16_sub_groups(SimpleNamespace(sub_group_size=size), tensors)
    longest = max(sum(one.partition_numel() for one in group) for group in made)
    elements = ParameterCounts(sum(numbers), sum(numbers), 1024)
    said = states(elements, Zero(3, 1, 2, sub_group=size), 1, on_gpu=True).step // 4
    assert longest <= said <= longest + 1024


def test_frozen_weights_have_no_states() -> None:
    adapters = ParameterCounts(total=120, trained=20, largest=5)
    found = states(adapters, Zero(2, 4, 2, reduce_bucket=10), 1, on_gpu=True)
    assert (found.weights, found.optimizer, found.gradients) == (240, 12 * 5, 4 * 5)


def test_offload_moves_states_to_the_host_and_drops_nothing() -> None:
    there, moved = of(3), of(3, offload_optimizer=True, offload_weights=True)
    assert (moved.weights, moved.optimizer, moved.step) == (0, 0, 0)
    assert moved.host_weights == there.weights
    # masters, moments, fp32 gradients, and the buffer that they are summed in
    assert moved.host_optimizer == 12 * 25 + 4 * 25 + 4 * 25


def test_uneven_partitions_are_rounded_up() -> None:
    assert of(3, ranks=3).weights == 2 * 34


def test_a_bucket_that_gradients_do_not_fill_takes_less_on_a_cpu() -> None:
    small = ParameterCounts(total=6, trained=6, largest=3)
    zero = Zero(2, 2, 4, reduce_bucket=10)
    assert states(small, zero, 1, on_gpu=True).buckets == 80
    assert states(small, zero, 1, on_gpu=False).buckets == 48


@pytest.mark.parametrize("name", ["llama-8b", "llama-70b"])
@pytest.mark.parametrize("gpus", [8, 64])
def test_zero_2_is_deepspeeds_own_estimate(name: str, gpus: int) -> None:
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as estimate

    shape = PRESETS[name]
    _, theirs = estimate(shape.parameters, num_gpus_per_node=8, num_nodes=gpus // 8, cpu_offload=False)
    found = _states_of(name, Zero(2, gpus, 2))
    # Theirs: 2 P + 18 P / n, of which 18 are gradients in 16 and in 32 bit, masters, moments. Ours has them in 32 bit
    # alone, in which they are summed.
    ours = found.weights + found.optimizer + found.gradients + found.step
    assert ours + 2 * shape.parameters / gpus == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("name", ["llama-8b", "llama-70b"])
@pytest.mark.parametrize("gpus", [8, 64])
def test_zero_3_is_within_a_fifth_of_deepspeeds_own_estimate(name: str, gpus: int) -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as estimate

    shape = PRESETS[name]
    _, theirs, largest = estimate(
        shape.parameters, shape.largest, num_gpus_per_node=8, num_nodes=gpus // 8, cpu_offload=False
    )
    found = _states_of(name, Zero(3, gpus, 2))
    sharded = found.weights + found.optimizer + found.gradients + found.step
    # Theirs has 18 P / n: the weights' own 2 P / n are not in it. Ours has them too, masters and moments 12, gradients
    # in 32 bit, and the flat copy of a sub-group of those: all of a small partition, else 10^9 elements.
    copy = 4 * min(shape.parameters, 10**9 * gpus + shape.largest) / gpus
    assert sharded - copy == pytest.approx(theirs - largest, rel=1e-6)
    assert 1.0 <= sharded / (theirs - largest) <= 1.23


@pytest.mark.parametrize("name", ["llama-8b", "llama-70b"])
def test_zero_3_offload_is_deepspeeds_own_estimate_without_its_factor(name: str) -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as estimate

    shape = PRESETS[name]
    theirs, _, _ = estimate(
        shape.parameters, shape.largest, num_gpus_per_node=8, num_nodes=1, additional_buffer_factor=1
    )
    found = _states_of(name, Zero(3, 8, 2, offload_optimizer=True, offload_weights=True))
    ours = 8 * (found.host_weights + found.host_optimizer)
    # 18 P: weights 2, fp32 gradients 4, masters and moments 12. Ours has what they are summed in (4 P) as well.
    assert ours - 4 * shape.parameters == pytest.approx(theirs, rel=1e-6)


def _states_of(name: str, zero: Zero) -> States:
    shape = PRESETS[name]
    return states(ParameterCounts(shape.parameters, shape.parameters, shape.largest), zero, 1, on_gpu=True)


def test_settings_come_from_the_file_that_the_run_would_use() -> None:
    found = read_zero(ShardingConfig(ranks=4, zero=3, ds_config="zero3_offload"), "bf16", OptimizerConfig())
    assert (found.stage, found.ranks, found.item) == (3, 4, 2)
    assert found.offload_optimizer and found.offload_weights
    assert found.reduce_bucket == 50_000_000
    with pytest.raises(ConfigError, match="must be the same"):
        read_zero(ShardingConfig(ranks=4, zero=2, ds_config="zero3_offload"), "bf16", OptimizerConfig())
