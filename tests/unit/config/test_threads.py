"""CPU threads of workers: who computes at the same time shares the cores."""

from __future__ import annotations

import os
from typing import Any

import pytest

from cai_dist.config.engine import EngineConfig, VllmConfig
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.run import ClusterConfig, RunConfig
from cai_dist.config.threads import cpus_for_threads, role_threads, usable_cpus, worker_threads

AUTO, PLAIN = ClusterConfig(), EngineConfig()


def threads(cores: int, cluster: ClusterConfig = AUTO, engine: EngineConfig = PLAIN, **ppo: Any) -> dict[str, int]:
    config = RunConfig(name="x", ppo=PpoConfig.model_validate(ppo), cluster=cluster, engine=engine)
    return role_threads(config, cores)


def test_each_phase_has_all_cores() -> None:
    one = {"policy": {"ranks": 1}, "value": {"ranks": 1}, "placement": {"rollout": {"workers": 1}}}
    assert threads(8, **one) == {"policy": 4, "value": 4, "reference": 4, "reward": 4, "rollout": 8}
    grpo = one | {"algorithm": "grpo", "samples_per_prompt": 4}
    assert threads(2, **grpo) == {"policy": 2, "reference": 1, "reward": 1, "rollout": 2}


def test_more_workers_than_cores_have_one_each() -> None:
    assert set(threads(2, policy={"ranks": 4}).values()) == {1}


def test_a_schedule_that_draws_while_it_learns_shares_the_cores() -> None:
    asked = {"policy": {"ranks": 1}, "value": {"ranks": 1}, "placement": {"rollout": {"workers": 2}}}
    assert threads(8, schedule="one_step_off", **asked)["rollout"] == 2
    assert threads(8, schedule="one_step_off", **asked)["policy"] == 2


def test_every_process_of_an_engine_has_its_share() -> None:
    two = EngineConfig(backend="vllm", vllm=VllmConfig(tensor_parallel=2))
    assert threads(8, engine=two, placement={"rollout": {"workers": 2}})["rollout"] == 2


def test_a_number_that_was_said_stays() -> None:
    said = {"policy": {"ranks": 1}, "placement": {"rollout": {"workers": 1, "threads": 3}}}
    assert threads(8, **said)["rollout"] == 3
    assert threads(8, ClusterConfig(threads=2), **said)["policy"] == 2


def test_on_a_cluster_of_others_a_worker_has_its_own_cpus() -> None:
    assert worker_threads(ClusterConfig(address="auto"), 4, 6.0, 2) == 6
    assert worker_threads(ClusterConfig(address="auto"), 4, 0.25, 64) == 1
    assert worker_threads(AUTO, 3, 0.25, 8) == 2


@pytest.mark.parametrize(("said", "found"), [("1", 1), ("100000", None), ("", None), ("0", None), ("x", None)])
def test_omp_num_threads_of_the_run_bounds_them(monkeypatch: pytest.MonkeyPatch, said: str, found: int | None) -> None:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", said)
    assert cpus_for_threads() == (found or usable_cpus())
