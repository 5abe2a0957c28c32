import math

import pytest

from cai_dist.config.training import OptimizerConfig
from cai_dist.engines.training.learning_rate import learning_rate


def rates(total: int, **kwargs: object) -> list[float]:
    config = OptimizerConfig(lr=8.0, **kwargs)  # type: ignore[arg-type]
    return [learning_rate(config, step, total) for step in range(total)]


def test_warm_up_then_constant() -> None:
    assert rates(6, warmup_steps=4) == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]


def test_linear_reaches_the_final_rate_one_step_after_the_last() -> None:
    # Steps 0..4 of 5: 8 -> 8 * 0.5 = 4 in five equal moves, of which the last step has made four.
    assert rates(5, schedule="linear", final_lr_fraction=0.5) == pytest.approx([8.0, 7.2, 6.4, 5.6, 4.8])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("total", [1, 2, 3, 50])
def test_the_last_step_learns(schedule: str, total: int) -> None:
    assert min(rates(total, schedule=schedule)) > 0
    assert learning_rate(OptimizerConfig(lr=8.0, schedule=schedule), total, total) == 0  # type: ignore[arg-type]


def test_linear_is_transformers_own() -> None:
    import torch  # here: the tests of the mutants run this file again and again
    from transformers import get_linear_schedule_with_warmup

    weight = torch.nn.Parameter(torch.zeros(1))
    adam = torch.optim.SGD([weight], lr=8.0)
    theirs, found = get_linear_schedule_with_warmup(adam, 0, 7), []
    for _ in range(7):
        found.append(adam.param_groups[0]["lr"])
        adam.step()
        theirs.step()
    assert rates(7, schedule="linear") == pytest.approx(found)


def test_cosine_is_half_way_in_the_middle() -> None:
    found = rates(4, schedule="cosine")
    assert found == pytest.approx([8.0, 4 * (1 + math.cos(math.pi / 4)), 4.0, 4 * (1 - math.cos(math.pi / 4))])


def test_the_rate_joins_the_warm_up_without_a_jump_and_never_falls_below_the_end() -> None:
    config = OptimizerConfig(lr=8.0, schedule="cosine", warmup_steps=3, final_lr_fraction=0.25)
    found = [learning_rate(config, step, 10) for step in range(30)]
    assert found[2] == found[3] == 8.0
    assert found[9] > 2.0 and found[10:] == [2.0] * 20
    assert all(a >= b for a, b in zip(found[3:], found[4:], strict=False))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_job_shorter_than_its_warm_up_works(schedule: str) -> None:
    assert rates(2, schedule=schedule, warmup_steps=4) == [2.0, 4.0]
    assert rates(1, schedule=schedule) == [8.0]
