"""Every run file that comes with the project loads and contradicts nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from cai_dist.config.checks import check_run
from cai_dist.config.load import load_run
from cai_dist.constitution.check import check_constitution
from cai_dist.errors import ConfigError

RUNS = Path(__file__).parents[2] / "launch" / "runs"
FILES = sorted(RUNS.glob("*.yaml"))


def test_the_promised_ones_are_there() -> None:
    assert {"demo.yaml", "smollm2.yaml", "llama8b-8gpu.yaml"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_loads_under_its_own_name_and_lacks_nothing_but_data(path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CAI_DIST_DATA", str(tmp_path))
    config = load_run(path)
    assert config.name == path.stem
    try:
        check_constitution(config)
        check_run(config, ready=False)
    except ConfigError as error:
        lines = str(error).splitlines()
        assert all(line.startswith("data.") and "no such file" in line and str(tmp_path) in line for line in lines), (
            lines
        )


def test_smollm2_is_the_small_run_on_two_ranks_that_it_claims_to_be(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CAI_DIST_DATA", str(tmp_path))
    config = load_run(RUNS / "smollm2.yaml")
    assert (config.data.red_team.limit, config.data.helpful.limit, config.revise.rounds) == (16, 8, 2)
    assert (config.ppo.iterations, config.ppo.prompts_per_iteration) == (2, 8)
    for sharding in (config.sft.train.sharding, config.preference.train.sharding, config.ppo.policy, config.ppo.value):
        assert (sharding.ranks, sharding.zero) == (2, 2)


def test_the_gpu_run_fits_on_eight(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CAI_DIST_DATA", str(tmp_path))
    ppo = load_run(RUNS / "llama8b-8gpu.yaml").ppo
    place = ppo.placement
    gpus = ppo.policy.ranks * place.policy.gpus + ppo.value.ranks * place.value.gpus
    gpus += sum(p.workers * p.gpus for p in (place.reference, place.reward, place.rollout))
    assert gpus == 8
