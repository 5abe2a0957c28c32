"""What decides the result of the ppo stage: a change of it begins the stage anew, no checkpoint is continued."""

from __future__ import annotations

from typing import Any

import pytest

from cai_dist.config.run import RunConfig
from cai_dist.stages.ppo import settings


def of(**ppo: Any) -> dict[str, Any]:
    return settings(RunConfig.model_validate({"name": "x", "ppo": {"samples_per_prompt": 2, **ppo}}))


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": "rloo"},
        {"kl": {"where": "loss"}},
        {"kl": {"estimator": "k3"}},
        {"aggregate": "sequence"},
        {"whiten_advantages": False},
        {"dual_clip": 3.0},
        {"entropy_bonus": 0.01},
        {"target_kl": 0.1},
        {"importance_cap": 2.0},
        {"bootstrap_truncated": True},
        {"score_normalization": "running"},
        {"score_length": "residual"},
        {"missing_eos_penalty": 1.0},
        {"snapshot_every": 2},  # a finished run has no policy of its iterations: PPO is the only way to them
    ],
    ids=str,
)
def test_every_setting_of_the_algorithm_is_part_of_the_fingerprint(change: dict[str, Any]) -> None:
    assert of(**change) != of()


def test_where_and_how_often_is_not() -> None:
    assert of(placement={"rollout": {"workers": 7}}, checkpoint_every=1, transfer_bucket_mb=1.0) == of()
