from cai_dist.cluster.placement import GroupSpec, needed_cpus
from cai_dist.config.ppo import PlacementConfig, PpoConfig, RoleShards
from cai_dist.config.run import ClusterConfig, RunConfig
from cai_dist.config.supervised import ReviseConfig
from cai_dist.config.training import ShardingConfig
from cai_dist.types import WorkerSpec


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
    spec = WorkerSpec("a:B", {})
    assert GroupSpec("r", spec, cpus=0.5).bundle == {"CPU": 0.5}
    assert GroupSpec("r", spec, cpus=1.0, gpus=0.5).bundle == {"CPU": 1.0, "GPU": 0.5}
