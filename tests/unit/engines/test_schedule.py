import math

import pytest

from cai_dist.config.training import OptimizerConfig
from cai_dist.engines.schedule import learning_rate


def rates(total: int, **kwargs: object) -> list[float]:
    config = OptimizerConfig(lr=8.0, **kwargs)  # type: ignore[arg-type]
    return [learning_rate(config, step, total) for step in range(total)]


def test_warm_up_then_constant() -> None:
    assert rates(6, warmup_steps=4) == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]


def test_linear_ends_at_the_final_rate_on_the_last_step() -> None:
    # Steps 0..4 of 5: 8 -> 8 * 0.5 = 4 in four equal moves.
    assert rates(5, schedule="linear", final_lr_fraction=0.5) == [8.0, 7.0, 6.0, 5.0, 4.0]


def test_cosine_is_half_way_in_the_middle() -> None:
    found = rates(5, schedule="cosine")
    assert found == pytest.approx([8.0, 4 * (1 + math.cos(math.pi / 4)), 4.0, 4 * (1 - math.cos(math.pi / 4)), 0.0])


def test_the_rate_joins_the_warm_up_without_a_jump_and_never_falls_below_the_end() -> None:
    config = OptimizerConfig(lr=8.0, schedule="cosine", warmup_steps=3, final_lr_fraction=0.25)
    found = [learning_rate(config, step, 10) for step in range(30)]
    assert found[2] == found[3] == 8.0
    assert found[9:] == [2.0] * 21
    assert all(a >= b for a, b in zip(found[3:], found[4:], strict=False))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_job_shorter_than_its_warm_up_works(schedule: str) -> None:
    assert rates(2, schedule=schedule, warmup_steps=4) == [2.0, 4.0]
    assert rates(1, schedule=schedule) == [8.0]
