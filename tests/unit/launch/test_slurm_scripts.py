"""What the Slurm scripts give Ray, against what run files ask for: without Slurm."""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path

import pytest

from cai_dist.cluster.placement import needed_cpus
from cai_dist.config.demand import demand_line, demands
from cai_dist.config.loading.load import load_run
from cai_dist.config.run import RunConfig

ROOT = Path(__file__).parents[3]
SLURM = ROOT / "slurm"
JOBS = [path for path in sorted(SLURM.glob("*.sh")) if "#SBATCH" in path.read_text()]
RUNS = sorted((ROOT / "launch" / "runs").glob("*.yaml"))


def asked_of_slurm(script: Path) -> dict[str, str]:
    """Options of the `#SBATCH` lines."""
    return dict(re.findall(r"--([a-z-]+)=(\S+)", " ".join(re.findall(r"^#SBATCH (.*)$", script.read_text(), re.M))))


def places(cpus: int, nodes: int, printed: str) -> int:
    """CPUs of each node's Ray: the function of slurm/ray_cluster.sh, with what `cai-dist check` has printed."""
    text = (SLURM / "ray_cluster.sh").read_text()
    function = re.search(r"^places\(\) \{.*?^\}$", text, re.M | re.S)
    assert function is not None
    done = subprocess.run(
        ["bash", "-uo", "pipefail", "-c", f"{function[0]}\nplaces {cpus} {nodes}"],
        input=printed, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    return int(done.stdout)


def test_every_job_asks_for_one_task_and_cpus() -> None:
    assert {path.name for path in JOBS} == {"pipeline.sh", "pm.sh", "ppo.sh", "sft.sh"}
    for script in JOBS:
        asked = asked_of_slurm(script)
        assert (asked["nodes"], asked["ntasks-per-node"], asked["cpus-per-task"]) == ("1", "1", "16"), script.name


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_ray_has_the_cpus_that_a_run_file_asks_for(path: Path) -> None:
    """As the scripts start it, on one node: a run is not refused after it has waited in the queue."""
    config = load_run(path, ["cluster.address=auto"], elsewhere=True)
    cpus = int(asked_of_slurm(SLURM / "ppo.sh")["cpus-per-task"])
    given = places(cpus, 1, f"{path}: in order\nstages: a -> b\n{demand_line(config)}\n")
    assert given == max(cpus, math.ceil(needed_cpus(config)))
    assert all(demand.cpus <= given for demand in demands(config))


def test_a_run_that_asks_for_more_than_the_job_has_gets_its_places() -> None:
    big = load_run(ROOT / "launch/runs/llama8b-8gpu.yaml", elsewhere=True)
    assert needed_cpus(big) == 32 > int(asked_of_slurm(SLURM / "ppo.sh")["cpus-per-task"])
    assert places(16, 1, demand_line(big)) == 32
    assert places(128, 1, demand_line(big)) == 128
    assert places(16, 1, "") == 16, "a command that is not checked"


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_on_several_nodes_the_last_place_finds_one_too(nodes: int) -> None:
    """Five CPUs a place: a part of the whole on each node is not enough where places are not cut."""
    roles = {role: {"cpus": 1.0, "gpus": 1.0} for role in ("policy", "value", "reference", "reward", "rollout")}
    ranks = {"policy": {"ranks": 7}, "value": {"ranks": 7}}
    config = RunConfig.model_validate({"name": "x", "ppo": {"placement": {"mode": "colocated", **roles}, **ranks}})
    each = places(1, nodes, demand_line(config))
    assert each * nodes >= 35 and sum(each // 5 for _ in range(nodes)) >= 7


def test_ray_is_started_with_those_places() -> None:
    assert '"--num-cpus=$CAI_RAY_PLACES"' in (SLURM / "ray_node.sh").read_text()
    text = (SLURM / "ray_cluster.sh").read_text()
    assert 'CAI_RAY_PLACES=$(places "$cpus" "${#nodes[@]}" <<<"$checked")' in text
