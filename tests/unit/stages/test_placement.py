"""GPUs that the cluster does not have are missed before any stage runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cai_dist.cluster import placement
from cai_dist.config.engine import EngineConfig, VllmConfig
from cai_dist.config.placement import PlacementConfig, RoleShards
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.run import RunConfig, TrackingConfig
from cai_dist.errors import ConfigError
from cai_dist.stages import pipeline
from cai_dist.stages.context import RunContext
from cai_dist.stages.summaries import StageSummary
from cai_dist.tracking.console import Console

PLAIN = EngineConfig()
ROLES = ("policy", "value", "reference", "reward", "rollout")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`run(gpus, there)`: a run whose seven workers (two ranks each of policy and value, one of each other role) ask
    for `gpus` each, on a cluster with `there`. Its stages and the start of the cluster only note their names, which are
    returned with the error."""
    noted: list[str] = []

    def stage(name: str) -> pipeline.StageSpec:
        def act(context: RunContext) -> list[Path]:
            noted.append(name)
            return []

        return replace(
            pipeline.STAGE_SPECS[name],
            execute=act,
            inputs=lambda context: [],
            summary=lambda context: StageSummary(""),
            gate=lambda context: [],
        )

    monkeypatch.setattr(pipeline, "STAGE_SPECS", {name: stage(name) for name in pipeline.STAGE_SPECS})
    monkeypatch.setattr(pipeline.evaluate, "show", lambda run: None)
    monkeypatch.setattr(RunContext, "cluster", lambda run: noted.append("cluster"))

    def run(gpus: float, there: float, engine: EngineConfig = PLAIN, **ppo: object) -> tuple[list[str], str]:
        resources = {"CPU": 64.0, "GPU": there}
        monkeypatch.setattr(placement.ray, "cluster_resources", lambda: resources)
        monkeypatch.setattr(placement.ray, "nodes", lambda: [{"Alive": True, "Resources": resources}])
        shards = RoleShards(**{role: PlacementConfig(gpus=gpus) for role in ROLES})
        config = RunConfig(
            name="t",
            runs_dir=str(tmp_path),
            constitution="micro",
            tracking=TrackingConfig(wandb="off"),
            ppo=PpoConfig(placement=shards, **ppo),
            engine=engine,
        )
        noted.clear()
        try:
            pipeline.run_pipeline(config, Console("quiet"))
        except ConfigError as error:
            return list(noted), str(error)
        return list(noted), ""

    return run


def test_too_few_gpus_end_the_run_before_its_first_stage(world) -> None:
    noted, error = world(1.0, there=6.0)
    assert noted == ["cluster"]
    assert "the cluster has 6 GPU of 7 asked" in error and "\n" not in error


def test_enough_gpus_let_every_stage_run(world) -> None:
    noted, error = world(1.0, there=7.0)
    assert (noted[:2], noted[-1], error) == (["cluster", "prepare"], "evaluate", "")


def test_without_gpus_nothing_is_started_early(world) -> None:
    noted, error = world(0.0, there=0.0)
    assert (noted[0], "cluster" in noted, error) == ("prepare", False, "")


def test_a_finished_ppo_asks_for_nothing_and_one_to_be_made_again_does(world) -> None:
    world(1.0, there=7.0)
    assert world(1.0, there=0.0) == ([], "")
    noted, error = world(1.0, there=0.0, iterations=7)
    assert noted == ["cluster"] and "GPU" in error


def test_gpus_of_every_process_of_an_engine_are_asked_for_before_the_first_stage(world) -> None:
    engine = EngineConfig(backend="vllm", vllm=VllmConfig(tensor_parallel=2))
    assert world(1.0, there=8.0, engine=engine)[1] == ""
    noted, error = world(1.0, there=7.0, engine=engine, iterations=7)
    assert noted == ["cluster"] and "the cluster has 7 GPU of 8 asked" in error
