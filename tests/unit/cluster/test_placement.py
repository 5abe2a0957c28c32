from cai_dist.cluster.placement import (
    GroupSpec,
    WorkerPlacement,
    bundles,
    gpu_fraction,
    needed_cpus,
    seat_rows,
    sharing,
)
from cai_dist.config.demand import demands
from cai_dist.config.engine import EngineConfig, VllmConfig
from cai_dist.config.placement import PlacementConfig, RoleShards
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.run import ClusterConfig, RunConfig
from cai_dist.config.supervised import ReviseConfig
from cai_dist.config.training import ShardingConfig
from cai_dist.types import WorkerSpec

SPEC = WorkerSpec("a:B", {})


def test_a_run_needs_what_its_widest_stage_asks_for() -> None:
    # PPO: 4 x 0.5 policy + 2 x 0.25 value + 0.25 reference + 0.25 reward + 2 x 0.25 rollout = 3.5
    ppo = PpoConfig(
        policy=ShardingConfig(ranks=4),
        placement=RoleShards(policy=PlacementConfig(cpus=0.5)),
    )
    assert needed_cpus(RunConfig(name="a", ppo=ppo)) == 3.5
    # 30 revise workers x 0.25 = 7.5 is more than that.
    assert needed_cpus(RunConfig(name="a", ppo=ppo, revise=ReviseConfig(workers=30))) == 7.5
    cluster = ClusterConfig(cpus=1.0)
    assert needed_cpus(RunConfig(name="a", ppo=ppo, revise=ReviseConfig(workers=30), cluster=cluster)) == 30.0


def test_a_bundle_names_gpus_only_where_there_are_some() -> None:
    assert GroupSpec("r", SPEC, cpus=0.5).bundle == {"CPU": 0.5}
    assert GroupSpec("r", SPEC, cpus=1.0, gpus=0.5).bundle == {"CPU": 1.0, "GPU": 0.5}


def test_a_worker_of_several_processes_has_the_place_of_all_of_them() -> None:
    spec = GroupSpec("rollout", SPEC, workers=2, cpus=0.5, gpus=1.0, processes=4)
    assert bundles([spec]) == [{"CPU": 2.0, "GPU": 4.0}] * 2
    assert gpu_fraction(spec, 1, [spec]) == 4.0 and spec.worker_cpus == 2.0


def test_a_run_counts_every_process_of_its_engines() -> None:
    engine = EngineConfig(backend="vllm", vllm=VllmConfig(tensor_parallel=4, pipeline_parallel=2))
    gpus = RoleShards(rollout=PlacementConfig(workers=2, cpus=0.5, gpus=1))
    ppo, revise = PpoConfig(placement=gpus), ReviseConfig(workers=3)
    plain = RunConfig(name="a", ppo=ppo, revise=revise, cluster=ClusterConfig(gpus=1))
    run = plain.model_copy(update={"engine": engine})
    before, after = ({one.stage: one for one in demands(config)} for config in (plain, run))
    assert (before["ppo"].gpus, after["ppo"].gpus) == (2, 16)
    assert after["ppo"].cpus - before["ppo"].cpus == 2 * 7 * 0.5 and after["ppo"].place == 4.0
    assert (before["revise"].gpus, after["revise"].gpus) == (3, 24)
    assert after["revise"].why.endswith("= 3 x 0.25, each of 8 processes") and after["revise"].cpus == 6.0
    assert after["sft"] == before["sft"]


def test_roles_that_share_stand_in_one_placement_group() -> None:
    specs = [GroupSpec(role, SPEC, share=share) for role, share in [("a", "x"), ("b", ""), ("c", "x"), ("d", "")]]
    assert [[spec.role for spec in group] for group in sharing(specs)] == [["a", "c"], ["b"], ["d"]]


def test_a_shared_bundle_holds_the_ith_worker_of_each_role() -> None:
    # One whole GPU a place, the CPUs of those who sit there: 0.5 + 0.25 twice, then 0.25 + 0.125, then 0.125 alone.
    group = [
        GroupSpec("policy", SPEC, workers=2, cpus=0.5, gpus=1.0, share="x"),
        GroupSpec("rollout", SPEC, workers=3, cpus=0.25, gpus=0.5, share="x"),
        GroupSpec("reward", SPEC, workers=4, cpus=0.125, gpus=0.25, share="x"),
    ]
    assert bundles(group) == [
        {"CPU": 0.875, "GPU": 1.0},
        {"CPU": 0.875, "GPU": 1.0},
        {"CPU": 0.375, "GPU": 1.0},
        {"CPU": 0.125, "GPU": 1.0},
    ]
    assert [gpu_fraction(group[2], rank, group) for rank in range(4)] == [0.3333, 0.3333, 0.5, 1.0]
    assert gpu_fraction(group[0], 0, group) == 0.3333  # three of these are not more than the one device
    for rank, bundle in enumerate(bundles(group)):
        assert sum(gpu_fraction(s, rank, group) for s in group if rank < s.workers) <= bundle["GPU"]


def test_without_gpus_a_shared_bundle_has_none() -> None:
    group = [GroupSpec("a", SPEC, workers=2, share="x"), GroupSpec("b", SPEC, workers=1, share="x")]
    assert bundles(group) == [{"CPU": 0.5}, {"CPU": 0.25}]
    assert gpu_fraction(group[0], 0, group) == 0.0


def test_a_role_of_its_own_keeps_its_fraction() -> None:
    alone = [GroupSpec("a", SPEC, workers=2, cpus=1.0, gpus=0.5)]
    assert bundles(alone) == [{"CPU": 1.0, "GPU": 0.5}] * 2
    assert gpu_fraction(alone[0], 1, alone) == 0.5


def test_the_table_says_who_is_where_and_with_whom() -> None:
    seats = [
        WorkerPlacement("policy", 0, "10.0.0.1", ("0",), 0.5, "policy"),
        WorkerPlacement("policy", 1, "10.0.0.1", ("1",), 0.5, "policy"),
        WorkerPlacement("rollout", 0, "10.0.0.1", ("0",), 0.25, "policy"),
        WorkerPlacement("reward", 0, "10.0.0.2", (), 0.25, ""),
    ]
    assert seat_rows(seats) == [
        ["policy", "0", "10.0.0.1", "0", "0.5", "rollout"],
        ["policy", "1", "10.0.0.1", "1", "0.5", "rollout"],
        ["rollout", "0", "10.0.0.1", "0", "0.25", "policy"],
        ["reward", "0", "10.0.0.2", "-", "0.25", "-"],
    ]
