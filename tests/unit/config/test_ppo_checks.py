"""Settings of `ppo` that belong to an algorithm: refused where it would ignore them, warned of where they mislead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.algorithms import DEFAULTS
from cai_dist.config.checks.ppo import ppo_problems, ppo_warnings
from cai_dist.config.checks.run import check_run
from cai_dist.config.demand import ppo_demand
from cai_dist.config.loading.load import load_run
from cai_dist.config.run import RunConfig
from cai_dist.errors import ConfigError


def run_of(**ppo: Any) -> RunConfig:
    return RunConfig.model_validate({"name": "x", "ppo": ppo})


PARTIAL = {"schedule": "partial", "pause_after": 8, "sampling": {"max_new_tokens": 24}}


@pytest.mark.parametrize(
    ("ppo", "message"),
    [
        ({"pause_after": 8}, "ppo.pause_after=8: leave it out"),
        ({"schedule": "partial"}, "ppo.schedule=partial: needs ppo.pause_after"),
        (PARTIAL | {"pause_after": 7}, "ppo.pause_after=7: must divide ppo.sampling.max_new_tokens=24"),
        (PARTIAL | {"pause_after": 24}, "ppo.pause_after=24: must divide"),
        (PARTIAL | {"old_logprobs": "sampler"}, "ppo.old_logprobs=sampler: must be trainer with ppo.schedule=partial"),
        ({"schedule": "one_step_off", "old_logprobs": "sampler"}, "must be trainer with ppo.schedule=one_step_off"),
        (
            {
                "schedule": "one_step_off",
                "placement": {"mode": "hybrid", "share": (("policy", "rollout"), ("value", "reward"))},
            },
            "ppo.schedule=one_step_off: cannot be with ppo.placement.mode=hybrid",
        ),
    ],
)
def test_what_the_schedules_need(ppo: dict[str, Any], message: str) -> None:
    found = [problem for problem in ppo_problems(run_of(**ppo).ppo) if message in problem]
    assert len(found) == 1 and "\n" not in found[0]


@pytest.mark.parametrize("ppo", [PARTIAL, {"schedule": "one_step_off"}])
def test_schedules_as_they_should_be(ppo: dict[str, Any]) -> None:
    assert list(ppo_problems(run_of(**ppo).ppo)) == []


@pytest.mark.parametrize("algorithm", ["rloo", "reinforce++-group", "grpo", "dr-grpo"])
def test_a_group_of_one_is_refused_in_one_line(algorithm: str, tmp_path: Path) -> None:
    (path := tmp_path / "run.yaml").write_text(f"name: x\nppo: {{algorithm: {algorithm}}}\n")
    with pytest.raises(ConfigError) as caught:
        load_run(path, [])
    line = str(caught.value)
    assert "\n" not in line
    assert f"ppo.samples_per_prompt=1: must be at least 2 for algorithm={algorithm}" in line
    load_run(path, ["ppo.samples_per_prompt=2"])


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce++"])
def test_one_sample_a_prompt_is_enough_for_a_baseline_over_the_batch(algorithm: str) -> None:
    check_run(run_of(algorithm=algorithm))


@pytest.mark.parametrize("algorithm", [name for name, defaults in DEFAULTS.items() if not defaults.needs_value])
def test_a_value_model_that_is_not_there_is_not_configured(algorithm: str) -> None:
    common = {"algorithm": algorithm, "samples_per_prompt": 2}
    with pytest.raises(ConfigError, match="ppo.value_warmup=2: must be 0 with ppo.algorithm=.*has no value model"):
        check_run(run_of(**common, value_warmup=2))
    with pytest.raises(ConfigError, match="ppo.bootstrap_truncated=true: must be false with ppo.algorithm="):
        check_run(run_of(**common, bootstrap_truncated=True))
    check_run(run_of(**common, placement={"value": {"cpus": 90.0}}))
    # Its sharding does not count, and its default place takes no room.
    check_run(run_of(**common, value={"ranks": 7}))
    tight = {"name": "x", "cluster": {"num_cpus": 1.5}}
    check_run(RunConfig.model_validate(tight | {"ppo": common}))
    with pytest.raises(ConfigError, match="num_cpus=1.5: must be at least 2,"):
        check_run(RunConfig.model_validate(tight))


def test_importance_weights_need_both_log_probabilities() -> None:
    check_run(run_of(importance_cap=2.0))
    with pytest.raises(ConfigError, match="ppo.importance_cap=2: needs ppo.old_logprobs=trainer"):
        check_run(run_of(importance_cap=2.0, old_logprobs="sampler"))


@pytest.mark.parametrize("algorithm", list(DEFAULTS))
def test_a_discount_is_refused_where_nothing_is_discounted(algorithm: str) -> None:
    config = run_of(algorithm=algorithm, samples_per_prompt=2, gamma=0.99)
    if DEFAULTS[algorithm].discounts:  # type: ignore[index]
        check_run(config)
    else:
        with pytest.raises(ConfigError, match="ppo.gamma=0.99: must be 1 with ppo.algorithm="):
            check_run(config)


@pytest.mark.parametrize("algorithm", list(DEFAULTS))
def test_defaults_raise_no_warning(algorithm: str) -> None:
    clip = {"clip": 3e-4, "clip_high": 4e-4} if algorithm == "gspo" else {}
    config = run_of(algorithm=algorithm, samples_per_prompt=2, **clip)
    check_run(config)
    assert list(ppo_warnings(config.ppo)) == []


def test_a_wide_clip_of_a_ratio_per_response_is_warned_of() -> None:
    (line,) = ppo_warnings(run_of(algorithm="gspo", samples_per_prompt=2).ppo)
    assert "ppo.clip=0.2: hardly ever clips with ppo.algorithm=gspo" in line


@pytest.mark.parametrize(
    ("kl", "warning"),
    [
        ({"where": "loss", "estimator": "k1"}, "k1: has an expected gradient of zero in the loss"),
        ({"where": "reward", "estimator": "k3"}, "k3: as a reward it does not have the KL's gradient"),
        ({"where": "reward", "estimator": "k2"}, "k2: as a reward it does not have the KL's gradient"),
        ({"where": "loss", "estimator": "k1", "coefficient": 0.0}, None),
        ({"where": "loss", "estimator": "k2"}, None),
    ],
)
def test_estimators_in_the_wrong_place_run_with_a_warning(kl: dict[str, Any], warning: str | None) -> None:
    config = run_of(kl=kl)
    check_run(config)
    lines = list(ppo_warnings(config.ppo))
    assert len(lines) == (warning is not None) and all(warning in line for line in lines if warning)


def test_a_controller_that_could_never_leave_zero_is_refused() -> None:
    check_run(run_of(kl={"coefficient": 0.0}))
    check_run(run_of(kl={"coefficient": 0.01, "target": 3.0}))
    with pytest.raises(ConfigError) as caught:
        check_run(run_of(kl={"coefficient": 0.0, "target": 3.0}))
    assert "ppo.kl.coefficient=0: must be greater than 0 with ppo.kl.target=3" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("epochs", "mini_batch", "samples_per_prompt", "warns"),
    [(1, 8, 1, True), (1, 16, 2, True), (2, 8, 1, False), (1, 4, 1, False), (1, 8, 2, False)],
)
def test_an_early_stop_of_a_single_step_runs_with_a_warning(
    epochs: int, mini_batch: int, samples_per_prompt: int, warns: bool
) -> None:
    common: dict[str, Any] = {
        "prompts_per_iteration": 8,
        "samples_per_prompt": samples_per_prompt,
        "epochs": epochs,
        "mini_batch": mini_batch,
    }
    config = run_of(**common, target_kl=0.1, kl={"coefficient": 0.0})
    check_run(config)
    lines = list(ppo_warnings(config.ppo))
    assert len(lines) == warns and all("ppo.target_kl=0.1: stops nothing" in line for line in lines)
    assert list(ppo_warnings(run_of(**common).ppo)) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.algorithm=a2c", "ppo.algorithm='a2c': must be one of 'ppo', 'rloo'"),
        ("ppo.whiten_advantages=maybe", "ppo.whiten_advantages='maybe': must be 'auto' or true or false"),
        ("ppo.aggregate=mean", "ppo.aggregate='mean': must be 'auto' or one of 'token', 'sequence' or 'constant'"),
        ("ppo.dual_clip=1.0", "ppo.dual_clip=1.0: must be greater than 1"),
        ("ppo.target_kl=0", "ppo.target_kl=0: must be greater than 0"),
        ("ppo.kl.estimator=k4", "ppo.kl.estimator='k4': must be 'auto' or one of 'k1', 'k2' or 'k3'"),
    ],
)
def test_mistakes_are_one_line(override: str, message: str, tmp_path: Path) -> None:
    (path := tmp_path / "run.yaml").write_text("name: x\n")
    with pytest.raises(ConfigError) as caught:
        load_run(path, [override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "workers", "rows", "ppo", "size"),
    [
        (64, 8, 128, {}, 8),  # every worker has something to do
        (65, 8, 128, {}, 9),
        (4096, 4, 128, {}, 256),  # streamed: a quarter of a share
        (2048, 4, 128, {}, 256),  # but two places for every prompt that an engine starts with
        (4096, 4, 16, {"stream": False}, 1024),
        (4096, 4, 16, {"schedule": "one_step_off"}, 256),
        (4096, 4, 16, {"schedule": "one_step_off", "lora": {"rank": 2}}, 1024),
        (4096, 4, 16, {"rollout_batch": 40}, 40),
        (0, 4, 16, {"stream": False}, 1),
    ],
)
def test_a_request_to_a_rollout_worker_is_its_share_unless_streamed(
    prompts: int, workers: int, rows: int, ppo: dict[str, Any], size: int
) -> None:
    assert run_of(**ppo).ppo.rollout_request(prompts, workers, rows) == size


def test_a_trained_role_has_as_many_workers_as_ranks_and_another_what_its_placement_says() -> None:
    cpus = {"cpus": 0.5}
    run = run_of(
        policy={"ranks": 3, "micro_batch": 1},
        value={"ranks": 2, "micro_batch": 1},
        placement={"reward": {"workers": 4, **cpus}, "policy": cpus, "value": cpus, "reference": cpus, "rollout": cpus},
    )
    ppo = run.ppo
    assert {role: ppo.workers_of(role) for role in ppo.roles} == {
        "policy": 3, "value": 2, "reference": 1, "reward": 4, "rollout": 1,
    }  # fmt: skip
    assert ppo_demand(run).cpus == 0.5 * 11


def test_a_sharded_role_has_as_many_workers_as_ranks() -> None:
    ppo = run_of(reference={"ranks": 4}, reward={"ranks": 3}, policy={"micro_batch": 2}).ppo
    assert (ppo.workers_of("reference"), ppo.workers_of("reward")) == (4, 3)
    sharding = ppo.scoring("reference")
    assert sharding is not None and (sharding.ranks, sharding.zero, sharding.micro_batch) == (4, 3, 2)
    assert run_of().ppo.scoring("reference") is None and ppo.scoring("policy") is None


@pytest.mark.parametrize(
    ("ppo", "message"),
    [
        ({"reference": {"ranks": 2}, "lora": {}}, "ppo.reference: leave it out; there are no such workers"),
        (
            {"reward": {"ranks": 2}, "rewards": ({"use": "my.rewards:length"},)},
            "ppo.reward: leave it out; there are no such workers",
        ),
        (
            {"reference": {"ranks": 2}, "placement": {"reference": {"workers": 3}}},
            "ppo.placement.reference.workers=3: leave it out; ppo.reference.ranks=2",
        ),
    ],
)
def test_a_sharded_role_that_is_not_there_or_counted_twice_is_refused(ppo: dict[str, Any], message: str) -> None:
    found = list(ppo_problems(run_of(**ppo).ppo))
    assert len([line for line in found if line.startswith(message)]) == 1, found


def test_the_deepspeed_file_of_a_sharded_role_is_looked_at() -> None:
    with pytest.raises(ConfigError, match=r"ppo\.reference\.ds_config='nowhere\.json': no such file"):
        check_run(run_of(reference={"ranks": 2, "ds_config": "nowhere.json"}))
