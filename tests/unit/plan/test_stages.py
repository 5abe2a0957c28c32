"""The stages beside PPO: what they could have instead, how long they take, what a run writes to disk."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from cai_dist.config.loading.load import build_run
from cai_dist.config.run import RunConfig
from cai_dist.config.training import LoraConfig, ShardingConfig
from cai_dist.plan.build import make_plan
from cai_dist.plan.disk import CHECKPOINTS, checkpoint_bytes, disk_of
from cai_dist.plan.machines import Machines
from cai_dist.plan.rates import H100, forward
from cai_dist.plan.roles import Assumed, shapes, trained_elements
from cai_dist.plan.suggest_stages import suggest_stages
from cai_dist.plan.zero import ParameterCounts
from tests.unit.plan.runs import run_of

NODE = Machines(nodes=1, gpus=8, gpu_memory=80 * 10**9, cpu_memory=10**12)
NOTHING = Assumed({})


def with_sections(**sections: Any) -> RunConfig:
    return build_run(_merged(run_of().model_dump(mode="json"), sections))


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return base | {
        k: _merged(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in over.items()
    }


def sharded(**settings: Any) -> dict[str, Any]:
    return {"train": {"batch_size": 64, "sharding": settings}}


WELL = {
    **{name: {"workers": 8} for name in ("revise", "feedback", "evaluate")},
    "sft": sharded(ranks=8, zero=3, micro_batch=1),
    "preference": sharded(ranks=8, zero=3, micro_batch=1),
}


def test_stages_that_are_well_as_they_are_are_left_alone() -> None:
    assert suggest_stages(make_plan(with_sections(**WELL), NODE, NOTHING), NOTHING) == []
    assert suggest_stages(make_plan(run_of(), replace(NODE, gpu_memory=None), NOTHING), NOTHING) == []


def test_a_stage_that_does_not_fit_is_told_what_does_and_one_with_idle_gpus_what_is_faster() -> None:
    uneven = WELL | {"sft": sharded(ranks=2, micro_batch=8), "preference": sharded(ranks=4, zero=3, micro_batch=1)}
    config = with_sections(**uneven | {"revise": {"workers": 3}})
    plan = make_plan(config, NODE, NOTHING)
    engines, sft, preference = suggest_stages(plan, NOTHING)
    assert sft.why.startswith("sft does not leave 10% free as it is; it does with 8 ranks, zero")
    assert preference.why.startswith("preference fits as it is, and is 2 times as fast with 8 ranks, zero")
    assert engines.why == "revise leave GPUs without work; 8 workers find one each"
    pasted = config.model_dump(mode="json")
    for one in (sft, preference, engines):
        pasted = _merged(pasted, yaml.safe_load(one.lines))
    again = make_plan(build_run(pasted), NODE, NOTHING)
    assert not [line for line in again.problems if not line.startswith("ppo")]
    assert suggest_stages(again, NOTHING) == []
    assert again.config.revise.workers == 8 and again.config.sft.train.sharding.ranks == 8


def test_as_many_workers_as_there_are_cpus_for() -> None:
    sections = WELL | {"revise": {"workers": 1}, "cluster": {"cpus": 1.5}}
    few = {"feedback": {"workers": 6}, "evaluate": {"workers": 6}}
    found = suggest_stages(make_plan(with_sections(**sections | few), replace(NODE, cpus=9), NOTHING), NOTHING)
    assert yaml.safe_load(found[0].lines) == {"revise": {"workers": 6}}


def test_a_step_and_a_thousand_answers_take_their_work_over_their_rates() -> None:
    plan = make_plan(with_sections(**WELL), NODE, NOTHING)
    shape, tokens = plan.shapes["pretrained"], 1024
    new = plan.config.revise.sampling.max_new_tokens
    sft = 3 * forward(shape, 64 * tokens, tokens, 64 * new) / (8 * H100.update)
    pairs = 3 * forward(shape, 128 * tokens, tokens, 0) / (8 * H100.update)
    assert plan.stage_seconds["sft"] == pytest.approx(sft)
    assert plan.stage_seconds["preference"] == pytest.approx(pairs)
    two = {name: {"workers": 2} for name in ("revise", "feedback", "evaluate")}
    fewer = make_plan(with_sections(**WELL | two), NODE, NOTHING)
    assert plan.stage_seconds["generation"] < fewer.stage_seconds["generation"]
    assert make_plan(with_sections(models={"dtype": "fp32"}), NODE, NOTHING).stage_seconds == {}


# ---- disk


def test_a_checkpoint_by_hand() -> None:
    whole, adapters = ParameterCounts(100, 100, 10), ParameterCounts(120, 20, 5)
    bf16 = [checkpoint_bytes(whole, ShardingConfig(zero=zero), 2) for zero in (0, 1, 2, 3)]  # type: ignore[arg-type]
    fp32 = [checkpoint_bytes(whole, ShardingConfig(zero=zero), 4) for zero in (0, 1, 2, 3)]  # type: ignore[arg-type]
    assert bf16 == [1400, 1400, 1400, 1200]
    assert fp32 == [1200, 1600, 1600, 1200]
    assert checkpoint_bytes(adapters, ShardingConfig(zero=2), 2, lora=True) == 14 * 20


def test_what_a_run_writes() -> None:
    config = run_of(iterations=10, snapshot_every=3)
    found = disk_of(config, shapes(config, NOTHING))
    causal, scalar = 8_030_261_248, 7_504_928_768
    models = {"sft model": 2 * causal, "preference model": 2 * scalar, "ppo model": 2 * causal}
    assert found.models == models | {"ppo snapshots (3)": 6 * causal}
    assert found.checkpoints["ppo"] == 12 * (causal + scalar) and found.checkpoints["sft"] == 14 * causal
    assert (found.fullest, found.peak) == ("ppo", sum(found.models.values()) + CHECKPOINTS * found.checkpoints["ppo"])
    lora = run_of(lora=LoraConfig(rank=8, save="adapter").model_dump(mode="json"))
    small = disk_of(lora, shapes(lora, NOTHING))
    assert small.models["ppo model"] < 0.01 * models["ppo model"] and small.fullest == "sft"
    dpo = with_sections(alignment="dpo")
    assert disk_of(dpo, shapes(dpo, NOTHING)).checkpoints.keys() == {"sft", "dpo"}


@pytest.mark.parametrize("stage", ["sft", "pm pretraining", "preference", "dpo"])
def test_adapters_of_a_stage_have_the_only_training_states(stage: str) -> None:
    """Weights of all, whole in stage 2; gradients, masters and moments of the factors (and the head) alone."""
    section = "preference" if stage == "pm pretraining" else stage
    sections: dict[str, Any] = {"alignment": "dpo" if stage == "dpo" else "ppo"}
    if stage == "pm pretraining":
        sections["data"] = {"ranked_answers": {"source": "world"}}
    found = {}
    for lora in (None, {"rank": 8}):
        config = with_sections(**sections, **{section: {"lora": lora}})
        planned = next(one for one in make_plan(config, NODE, NOTHING).stages if one.stage.name == stage)
        found[lora is None] = planned.stage.workers[0].device["update"]
    shape = shapes(config, NOTHING)["pretrained"]
    counts = trained_elements(
        shape, LoraConfig(rank=8), causal=stage in ("sft", "dpo"), with_head=stage == "pm pretraining"
    )
    assert found[False]["weights"] == 2 * counts.total
    assert found[False]["optimizer"] == 12 * counts.trained // 2  # two ranks
    assert counts.trained < 0.01 * counts.total and found[True]["optimizer"] > 50 * found[False]["optimizer"]
    small = disk_of(config, shapes(config, NOTHING))
    name = "preference pretraining" if stage == "pm pretraining" else stage
    assert small.checkpoints[name] == 14 * counts.trained
    adapter = with_sections(**sections, **{section: {"lora": {"rank": 8, "save": "adapter"}}})
    assert small.models[f"{section} model"] > 50 * disk_of(adapter, shapes(adapter, NOTHING)).models[f"{section} model"]


@pytest.mark.parametrize(("kind", "item"), [("nf4", 0.516), ("int8", 1.0)])
def test_a_quantised_base_takes_its_bytes_and_one_whole_weight_in_a_pass(kind: str, item: float) -> None:
    lora = {"rank": 8, "quantization": kind}
    found = {}
    for name, settings in (("plain", {"rank": 8}), ("quantised", lora)):
        config = with_sections(sft={"lora": settings})
        plan = make_plan(config, NODE, NOTHING)
        worker = next(one for one in plan.stages if one.stage.name == "sft").stage.workers[0]
        found[name] = worker.device
    shape = shapes(config, NOTHING)["pretrained"]
    saved = found["plain"]["update"]["weights"] - found["quantised"]["update"]["weights"]
    assert saved == pytest.approx((2 - item) * shape.matrices, rel=2e-3)
    more = found["quantised"]["update"]["buffers"] - found["plain"]["update"]["buffers"]
    assert more == 2 * shape.hidden * shape.intermediate
    assert found["plain"]["start"]["weights"] - found["quantised"]["start"]["weights"] == saved
    assert found["quantised"]["update"]["optimizer"] == found["plain"]["update"]["optimizer"]
    assert disk_of(config, shapes(config, NOTHING)).models["sft model"] == 2 * shape.parameters, "written whole"


def test_training_has_all_gpus_however_many_an_engine_has() -> None:
    engine = {"engine": {"backend": "vllm", "vllm": {"tensor_parallel": 4}}}
    few = WELL | {"sft": sharded(ranks=4, zero=3, micro_batch=1), "revise": {"workers": 1}} | engine
    found = suggest_stages(make_plan(with_sections(**few), NODE, NOTHING), NOTHING)
    sft = next(one for one in found if "sft" in one.lines)
    assert yaml.safe_load(sft.lines)["sft"]["train"]["sharding"]["ranks"] == NODE.gpus
    revise = next(one for one in found if "revise" in one.lines)
    assert yaml.safe_load(revise.lines)["revise"]["workers"] == NODE.gpus // 4


def test_ranks_that_compute_sequences_together_stay_groups_in_what_is_suggested() -> None:
    """On seven GPUs six of them, in three groups of two; all six do the work of a step."""
    pairs = WELL | {"sft": sharded(ranks=4, zero=3, micro_batch=1, sequence_parallel=2)}
    plan = make_plan(with_sections(**pairs), replace(NODE, gpus=7), NOTHING)
    sft = next(one for one in suggest_stages(plan, NOTHING) if "sft" in one.lines)
    assert yaml.safe_load(sft.lines)["sft"]["train"]["sharding"]["ranks"] == 6
    plain = WELL | {"sft": sharded(ranks=4, zero=3, micro_batch=1)}
    plans = (make_plan(with_sections(**one), NODE, NOTHING) for one in (pairs, plain))
    seconds = [one.stage_seconds["sft"] for one in plans]
    assert seconds[0] == seconds[1]
