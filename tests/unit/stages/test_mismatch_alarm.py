"""The alarm speaks where sampler and trainer differ beyond the bound of the dtype, and names the figure."""

from __future__ import annotations

from cai_dist.config.run import RunConfig
from cai_dist.stages.ppo import mismatch_alarm, settings


def config(dtype: str = "fp32", **ppo: object) -> RunConfig:
    return RunConfig.model_validate({"name": "x", "models": {"dtype": dtype}, "ppo": ppo})


def test_the_alarm() -> None:
    numbers = {"mismatch_mean": 0.05, "mismatch_max": 1.5}
    line = mismatch_alarm(config(), 7, numbers)
    assert line is not None and "iteration 7" in line and "0.05 nats" in line and "mismatch_alarm=0.01" in line
    assert mismatch_alarm(config("bf16"), 7, numbers) is None
    assert mismatch_alarm(config("bf16"), 7, {**numbers, "mismatch_mean": 0.21}) is not None
    assert mismatch_alarm(config(mismatch_alarm=0.06), 7, numbers) is None
    assert mismatch_alarm(config(mismatch_alarm=0.04), 7, numbers) is not None
    assert mismatch_alarm(config(), 7, {"offpolicy_mean": 3.0}) is None, "older weights are no mismatch"


def test_what_does_not_change_the_result_is_not_in_the_fingerprint() -> None:
    assert settings(config(mismatch_alarm=0.5, transfer="broadcast")) == settings(config())
    assert settings(config(schedule="one_step_off")) != settings(config())
