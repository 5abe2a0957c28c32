"""Every run file that comes with the project loads and contradicts nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from cai_dist.config.checks.run import check_run
from cai_dist.config.demand import demands, hardware_problems
from cai_dist.config.loading.load import load_run
from cai_dist.constitution import run_constitution
from cai_dist.constitution.check import check_constitution
from cai_dist.errors import ConfigError
from cai_dist.plan.build import RunPlan, make_plan
from cai_dist.plan.machines import Machines
from cai_dist.plan.roles import Assumed
from cai_dist.plan.suggest import FASTER, suggest

RUNS = Path(__file__).parents[2] / "launch" / "runs"
FILES = sorted(RUNS.glob("*.yaml"))


def test_the_promised_ones_are_there() -> None:
    assert {
        "demo.yaml",
        "smollm2.yaml",
        "llama8b-8gpu.yaml",
        "llama8b-grpo.yaml",
        "llama8b-lora.yaml",
        "llama8b-dpo.yaml",
        "llama70b-8x8.yaml",
        "qwen3-30b-a3b-2x8.yaml",
        "paper-52b.yaml",
    } <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_loads_under_its_own_name_and_lacks_only_files(path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CAI_DIST_DATA", str(tmp_path))
    monkeypatch.setenv("CAI_DIST_MODELS", str(tmp_path))
    config = load_run(path)
    assert config.name == path.stem
    try:
        check_constitution(config)
        check_run(config, ready=False)
    except ConfigError as error:
        assert [line for line in str(error).splitlines() if not is_a_missing_input(line, tmp_path)] == []


def is_a_missing_input(line: str, folder: Path) -> bool:
    """Whether the problem is that data, or a folder with a model, is not in `folder`."""
    missing = (line.startswith("data.") and "no such file" in line) or (
        line.startswith("models.") and "no such folder" in line
    )
    return missing and str(folder) in line


def test_smollm2_is_the_small_run_on_two_ranks_that_it_claims_to_be(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CAI_DIST_DATA", str(tmp_path))
    config = load_run(RUNS / "smollm2.yaml")
    assert (config.data.red_team.limit, config.data.helpful.limit, config.revise.rounds) == (16, 8, 2)
    assert (config.ppo.iterations, config.ppo.prompts_per_iteration) == (2, 8)
    for sharding in (config.sft.train.sharding, config.preference.train.sharding, config.ppo.policy):
        assert (sharding.ranks, sharding.zero) == (2, 2)
    assert (config.ppo.value.ranks, config.ppo.value.zero) == (1, 0)
    # Its head promises 24 GiB, of which the kernel leaves a little less; every prompt is counted at its longest.
    plan = make_plan(config, Machines(cpu_memory=int(23.5 * 2**30)), Assumed({}))
    assert (plan.verdict, plan.problems) == ("fits", ())


def planned(path: Path) -> RunPlan:
    """On the machines that it names; a run without GPUs on 24 GB."""
    config = load_run(path, elsewhere=True)
    there = config.cluster.hardware
    memory, host = there.gpu_memory_gb, there.cpu_memory_gb or (None if there.gpus_per_node else 24)
    machines = Machines(
        there.nodes,
        there.gpus_per_node or 0,
        None if memory is None else int(memory * 1e9),
        None if host is None else int(host * 1e9),
        there.cpus_per_node,
    )
    models = {"": "paper-52b"} if "52b" in path.stem else {}
    return make_plan(config, machines, Assumed(models))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_fits_on_the_machines_that_it_names(path: Path) -> None:
    config = load_run(path, elsewhere=True)
    assert list(hardware_problems(config)) == []
    plan = planned(path)
    assert plan.problems == () and plan.verdict in ("fits", "tight")


@pytest.mark.parametrize("stem", ["llama8b-8gpu", "llama8b-grpo", "llama8b-lora", "llama8b-dpo"])
def test_a_run_for_eight_gpus_asks_for_the_eight_that_it_names(stem: str) -> None:
    config = load_run(RUNS / f"{stem}.yaml", elsewhere=True)
    there = config.cluster.hardware
    assert (there.nodes, there.gpus_per_node, there.gpu_memory_gb) == (1, 8, 80)
    assert {demand.gpus for demand in demands(config)} == {8}
    plan = planned(RUNS / f"{stem}.yaml")
    assert {one.stage.name: one.loads.needed_gpus for one in plan.stages}.keys() >= {"generation", "sft"}
    assert {one.loads.needed_gpus for one in plan.stages} == {8}


LARGE = {
    "llama70b-8x8": (8, 56, 70.55e9, 80, 8192),
    "paper-52b": (16, 64, 52.6e9, 64, 8192),
    "qwen3-30b-a3b-2x8": (2, 12, 30.53e9, 48, 2048),
}
"""Nodes of eight 80 GB cards, ranks of what learns, parameters, layers, width."""


@pytest.mark.parametrize("stem", LARGE)
def test_a_large_run_fits_its_cards_as_counted_by_hand(stem: str) -> None:
    """docs/plan.md does the count in words: of a policy rank in its update, and of a process of an engine."""
    nodes, ranks, parameters, layers, width = LARGE[stem]
    config = load_run(RUNS / f"{stem}.yaml", elsewhere=True)
    there = config.cluster.hardware
    assert (there.nodes, there.gpus_per_node, there.gpu_memory_gb) == (nodes, 8, 80)
    plan = planned(RUNS / f"{stem}.yaml")
    assert plan.verdict == "fits"
    ppo = next(one for one in plan.stages if one.stage.name == "ppo")
    assert ppo.loads.needed_gpus == 8 * nodes
    by_role = {worker.role: worker for worker in ppo.stage.workers}
    states, kept, gathered = 18 * parameters / ranks, 2 * layers * 2048 * width, 4 * 2**30
    update = sum(size for name, size in by_role["policy"].device["update"].items() if name != "process")
    assert update == pytest.approx(states + kept + gathered, rel=0.15)
    parts = config.engine.processes
    assert by_role["rollout"].count == parts * config.ppo.workers_of("rollout")
    assert by_role["rollout"].device["rollout"]["weights"] == pytest.approx(2 * parameters / parts, rel=0.01)


@pytest.mark.parametrize("stem", ["llama8b-8gpu", "llama8b-grpo", "llama8b-lora"])
def test_a_run_for_eight_gpus_is_laid_out_as_fast_as_the_plan_knows(stem: str) -> None:
    plan = planned(RUNS / f"{stem}.yaml")
    found = suggest(plan, Assumed({}))
    assert found is not None and found.seconds is not None and plan.seconds is not None
    assert plan.seconds.total(plan.config.ppo.schedule) * FASTER <= found.seconds


def test_the_variants_of_the_8b_run_are_small_and_what_they_say() -> None:
    made = {name: load_run(RUNS / f"llama8b-{name}.yaml", elsewhere=True) for name in ("8gpu", "grpo", "lora", "dpo")}
    assert made["grpo"].ppo.roles == ("policy", "reference", "reward", "rollout") and made["grpo"].ppo.value_warmup == 0
    assert made["lora"].ppo.roles == ("policy", "value", "reward", "rollout") and made["lora"].ppo.lora is not None
    assert made["dpo"].stages[-2] == "dpo" and "ppo" not in made["dpo"].stages
    for name, config in made.items():
        assert (config.sft, config.feedback, config.models) == (
            made["8gpu"].sft,
            made["8gpu"].feedback,
            made["8gpu"].models,
        )
        assert name == "8gpu" or len((RUNS / f"llama8b-{name}.yaml").read_text().splitlines()) < 20


def test_the_paper_s_file_has_the_paper_s_numbers(tmp_path: Path, monkeypatch) -> None:
    """As the two papers give them (docs/paper.md names the sections)."""
    monkeypatch.setenv("CAI_DIST_DATA", str(tmp_path))
    monkeypatch.setenv("CAI_DIST_MODELS", str(tmp_path))
    config = load_run(RUNS / "paper-52b.yaml")
    human, written, helpful = 42_496, 140_335, 135_296
    assert (config.data.red_team.limit, config.expand.prompts) == (human, written)
    assert config.data.helpful.limit == config.data.helpful_comparisons.limit == helpful
    assert config.preference.helpful_fraction == pytest.approx(helpful / (helpful + human + written), abs=1e-4)
    assert (config.expand.rl_prompts, config.expand.rl_helpful, config.expand.helpful) == (491_142, 474_300, 0)
    red, other = human + written + 491_142, helpful + 474_300
    assert config.ppo.helpful_fraction == pytest.approx(other / (red + other), abs=1e-3)
    constitution = run_constitution(config)
    assert len(constitution.critique_principles) == len(constitution.comparison_principles) == 16
    assert (config.revise.principles, config.feedback.principles, config.feedback.per_pair) == (None, None, 1)
    assert (config.revise.rounds, config.revise.few_shot, config.revise.critique) == (4, 5, True)
    assert (config.sft.revisions, config.sft.helpful_per_prompt) == ("all", 2)
    assert (config.sft.train.epochs, config.sft.train.batch_size) == (1, 1024)
    assert (config.feedback.orders, config.feedback.hard, config.feedback.temperature) == ("one", False, 1.0)
    assert (config.ppo.kl.coefficient, config.ppo.clip, config.ppo.gamma, config.ppo.entropy_bonus) == (
        0.001,
        0.2,
        1,
        0,
    )
    assert (config.feedback.form, config.models.chat) == ("text", "plain")
    assert config.ppo.epochs in (1, 2, 4) and config.ppo.sampling.max_new_tokens == 128
    for stage in (config.expand, config.revise, config.feedback, config.ppo, config.evaluate):
        assert (stage.sampling.temperature, stage.sampling.top_p) == (1.0, 1.0)
    assert (config.data.red_team.heldout, config.evaluate.samples_per_prompt) == (64, 256)


def test_the_paper_s_learning_rates_are_its_multiples_of_one_rate(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CAI_DIST_DATA", str(tmp_path))
    monkeypatch.setenv("CAI_DIST_MODELS", str(tmp_path))
    config = load_run(RUNS / "paper-52b.yaml")
    optimizers = {
        0.5: config.sft.train.optimizer,
        0.1: config.preference.pretraining.train.optimizer,
        0.01: config.preference.train.optimizer,
    }
    assert {round(o.lr / share, 12) for share, o in optimizers.items()} == {1e-4}
    assert config.ppo.policy_optimizer.lr == pytest.approx(0.01 * 1e-4)
    assert {o.schedule for o in (*optimizers.values(), config.ppo.policy_optimizer)} == {"constant"}
