"""Whole plans: what fits, what does not and why, what is suggested."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml

from cai_dist.config.checks.run import check_run
from cai_dist.config.demand import ppo_demand
from cai_dist.config.loading.load import build_run, load_run
from cai_dist.config.run import RunConfig
from cai_dist.errors import ConfigError
from cai_dist.plan.build import make_plan
from cai_dist.plan.layouts import layouts, staged
from cai_dist.plan.machines import Machines
from cai_dist.plan.roles import Assumed, shapes, tokens_of, trained_elements
from cai_dist.plan.shapes import PRESETS
from cai_dist.plan.suggest import FASTER, suggest
from cai_dist.plan.ways import way_out
from tests.unit.plan.runs import run_of

H100 = Machines(nodes=2, gpus=8, gpu_memory=80 * 10**9, cpu_memory=10**12)
NOTHING = Assumed({})


def test_8b_on_gpus_of_their_own_fits() -> None:
    plan = make_plan(run_of(), H100, NOTHING)
    assert plan.ppo is not None and plan.ppo.loads.needed_gpus == 4 + 4 + 1 + 1 + 2
    assert [load.verdict for load in plan.ppo.loads.gpus] == ["fits"] * 12
    policy = plan.ppo.stage.workers[0]
    # 2 + 12 + 4 bytes a parameter over four ranks stay for good: weights, masters and moments, gradients in fp32.
    kept = sum(policy.device["rollout"][name] for name in ("weights", "optimizer", "gradients"))
    assert kept == pytest.approx(18 * PRESETS["llama-8b"].parameters / 4, rel=1e-6)
    # Built cut: a quarter, and the largest tensor while it is cut.
    shape = PRESETS["llama-8b"]
    assert policy.device["start"]["weights"] == 2 * (-(-shape.parameters // 4) + shape.largest)


def test_too_few_gpus_is_a_line() -> None:
    plan = make_plan(run_of(), replace(H100, nodes=1), NOTHING)
    assert plan.verdict == "does not fit"
    assert any("ppo: asks for 12 GPUs of 8" in line for line in plan.problems)


def test_too_small_a_gpu_names_worker_phase_and_way_out() -> None:
    plan = make_plan(run_of(), replace(H100, gpu_memory=40 * 10**9), NOTHING)
    line = next(line for line in plan.problems if line.startswith("ppo: GPU"))
    assert "in phase update of 37.3" in line
    assert "; more ranks, zero3_offload" in line and "zero: 3" not in line, "stage 3 has none above it"
    other = run_of(value={"ranks": 4, "zero": 2, "micro_batch": 1})
    lower = make_plan(other, replace(H100, gpu_memory=40 * 10**9), NOTHING)
    line = next(line for line in lower.problems if "value" in line)
    assert "; zero: 3, more ranks, zero3_offload" in line


def test_a_stage_is_advised_only_what_it_has() -> None:
    """Adapters of its own, and only where it has none yet; an engine has no ZeRO stage."""
    small = replace(H100, nodes=1, gpu_memory=20 * 10**9, cpu_memory=8 * 10**9)
    ways = {line.partition(":")[0]: line.rpartition("; ")[2] for line in make_plan(run_of(), small, NOTHING).problems}
    assert {"ppo", "generation", "sft", "preference"} <= ways.keys()
    assert [name for name, words in ways.items() if "ppo.lora" in words] == ["ppo"]
    engines = make_plan(run_of(gpus=0.0), Machines(cpu_memory=16 * 10**9), NOTHING).problems
    line = next(line for line in engines if line.startswith("generation"))
    assert "engine.max_rows" in line and "zero" not in line
    placement = {"reference": {}}
    adapted = make_plan(run_of(lora={"rank": 8}, placement=placement), small, NOTHING).problems
    assert [line for line in adapted if line.startswith("ppo")] and not [line for line in adapted if "ppo.lora" in line]
    tight = replace(small, gpu_memory=60 * 10**9)
    for lora in (None, {"rank": 8}):
        others = {"sft": {"lora": lora}, "preference": {"lora": lora}, "cluster": {"gpus": 1}}
        config = build_run(_merged(run_of().model_dump(mode="json"), others))
        lines = make_plan(config, tight, NOTHING).problems
        found = {line.partition(":")[0] for line in lines if re.search(r"(sft|preference)\.lora", line)}
        assert found == ({"sft", "preference"} if lora is None else set()), lines


def test_what_is_advised_takes_less() -> None:
    """A higher stage may take more on a CPU, where gathered weights are not given back; then it is no way out."""
    config = run_of()
    plan = make_plan(config, replace(H100, gpu_memory=40 * 10**9), NOTHING)
    assert plan.ppo is not None
    load = next(load for load in plan.ppo.loads.gpus if load.verdict == "does not fit")
    asked: list[RunConfig] = []

    def less_with_more_ranks(other: RunConfig) -> int:
        asked.append(other)
        return load.peak - (load.peak // 4 if other.ppo.policy.ranks > config.ppo.policy.ranks else 0)

    assert way_out(config, plan.ppo.stage, load, "update", less_with_more_ranks) == "more ranks"
    assert len(asked) >= 4 and all(other != config for other in asked if other.ppo.policy.micro_batch > 1)
    assert way_out(config, plan.ppo.stage, load, "update", lambda other: load.peak) == "a smaller model"


def test_70b_is_trained_in_parts_and_its_engines_hold_it_whole() -> None:
    assumed = Assumed({"": "llama-70b"})
    many = {"ranks": 64, "zero": 3, "micro_batch": 1}
    parts = run_of(policy=many, value=many, reference={"ranks": 8}, reward={"ranks": 8})
    plan = make_plan(parts, replace(H100, nodes=64), assumed)
    lines = [line for line in plan.problems if line.startswith("ppo: GPU")]
    assert lines and all("(rollout[" in line for line in lines)
    whole = make_plan(run_of(policy=many, value=many), replace(H100, nodes=64), assumed)
    assert any("(reference[0])" in line and "ppo.reference.ranks spreads" in line for line in whole.problems)
    flat = make_plan(run_of(policy={"ranks": 4, "zero": 0}), replace(H100, nodes=64), assumed)
    assert any("in phase start" in line and "zero: 3 (built in parts)" in line for line in flat.problems)
    found = suggest(plan, assumed)
    assert found is not None and found.lines == "" and "no placement on 512 GPUs" in found.why


def test_a_suggestion_is_the_first_that_fits_and_loads_as_it_is_pasted() -> None:
    config = run_of(policy={"ranks": 4, "zero": 2, "micro_batch": 1})
    plan = make_plan(config, replace(H100, nodes=1), NOTHING)
    found = suggest(plan, NOTHING)
    assert found is not None and "all roles on the same 8 GPUs" in found.why
    pasted = yaml.safe_load(found.lines)
    again = build_run(_merged(config.model_dump(mode="json"), pasted))
    assert again.ppo.placement.mode == "colocated" and again.ppo.policy.ranks == 8
    made = make_plan(again, replace(H100, nodes=1), NOTHING)
    assert made.ppo is not None
    assert {load.verdict for load in made.ppo.loads.gpus} == {"fits"}
    # A stage below the first does not fit there.
    lower = {"policy": {"zero": 0, "ds_config": None}}
    lower["value"] = lower["policy"]
    less = build_run(_merged(again.model_dump(mode="json"), {"ppo": lower}))
    tight = make_plan(less, replace(H100, nodes=1), NOTHING)
    assert tight.ppo is not None and any(load.verdict != "fits" for load in tight.ppo.loads.gpus)


def _merged(base: dict, over: dict) -> dict:
    return base | {
        k: _merged(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in over.items()
    }


def test_a_run_that_fits_is_left_alone_and_told_if_a_lower_stage_would_do() -> None:
    """Where no times are known, or nothing else is faster."""
    small = Assumed({"": "llama-1b"})
    cpus = Machines(cpu_memory=10**12)
    found = suggest(make_plan(run_of(gpus=0.0), cpus, small), small)
    assert found is not None and found.lines == "" and "zero1 would do" in found.why and found.seconds is None
    quick = suggest(make_plan(run_of(), H100, small), small)
    assert quick is not None
    pasted = build_run(_merged(run_of().model_dump(mode="json"), yaml.safe_load(quick.lines)))
    again = suggest(make_plan(staged(pasted, "zero2"), H100, small), small)
    assert again is not None and again.lines == "" and again.seconds == pytest.approx(quick.seconds)
    assert "none is faster" in again.why and "zero1 would do" in again.why


def test_of_all_that_fit_the_fastest_is_suggested_with_its_figures() -> None:
    """Not the first: separate GPUs fit, too, and take longer. What is pasted is what was planned."""
    config, one = run_of(), replace(H100, nodes=2, cpus=64)
    plan = make_plan(config, one, NOTHING)
    found = suggest(plan, NOTHING)
    assert found is not None and plan.seconds is not None and found.seconds is not None
    own = plan.seconds.total("sync")
    assert found.seconds < FASTER * own and f"{found.seconds:.0f} s an iteration, the fastest of" in found.why
    again = build_run(_merged(config.model_dump(mode="json"), yaml.safe_load(found.lines)))
    check_run(again, ready=False, files=False)
    assert _timed(again, one) == (True, pytest.approx(found.seconds))
    others = [_timed(layout.config, one) for layout in list(layouts(config, one, offload=False))[-16::3]]
    fit = [seconds for fits, seconds in others if fits]
    assert len(fit) > 3 and found.seconds <= min(fit) + 1e-9 and max(fit) > 1.2 * found.seconds


def _timed(config: RunConfig, machines: Machines) -> tuple[bool, float]:
    plan = make_plan(config, machines, NOTHING)
    assert plan.seconds is not None and plan.ppo is not None
    fits = {load.verdict for load in plan.ppo.loads.all} == {"fits"}
    return fits and not any(line.startswith("ppo") for line in plan.problems), plan.seconds.total("sync")


@pytest.mark.parametrize(
    "ppo",
    [
        {"schedule": "one_step_off"},
        {"transfer": "cuda_ipc", "placement": {"mode": "colocated", "rollout": {"gpus": 1, "workers": 4}}},
        {"placement": {"mode": "hybrid", "share": [["policy", "rollout"], ["value", "reward"]]}},
        {"algorithm": "grpo", "samples_per_prompt": 4},
        {"lora": {"rank": 8}},
        {"policy": {"ranks": 4, "zero": 3, "ds_config": "zero3_offload"}},
    ],
)
def test_every_layout_that_is_tried_says_what_it_is(ppo: dict[str, Any]) -> None:
    """Its lines, pasted into the run, are the layout that was planned, and the run is in order with them."""
    config = run_of(**ppo)
    machines = replace(H100, nodes=1, cpus=8)
    found = suggest(make_plan(config, machines, NOTHING), NOTHING)
    assert found is not None and found.lines
    again = build_run(_merged(config.model_dump(mode="json"), yaml.safe_load(found.lines)))
    check_run(again, ready=False, files=False)
    assert ppo_demand(again).cpus <= 8
    plan = make_plan(again, machines, NOTHING)
    assert plan.ppo is not None and {load.verdict for load in plan.ppo.loads.all} <= {"fits", None}
    assert plan.seconds is not None and plan.seconds.total(again.ppo.schedule) == pytest.approx(found.seconds)


def test_what_check_refuses_is_not_suggested() -> None:
    """On four large GPUs all roles together fit, but a schedule that samples ahead needs GPUs of its own for it."""
    four = Machines(nodes=1, gpus=4, gpu_memory=141 * 10**9, cpu_memory=10**12)
    plain = suggest(make_plan(run_of(), four, NOTHING), NOTHING)
    assert plain is not None and yaml.safe_load(plain.lines)["ppo"]["placement"]["mode"] == "colocated"
    ahead = suggest(make_plan(run_of(schedule="one_step_off"), four, NOTHING), NOTHING)
    assert ahead is not None and "colocated" not in ahead.lines and "hybrid" not in ahead.lines


def test_sequences_that_ranks_compute_together_are_counted_and_kept_in_what_is_suggested() -> None:
    """A context of 64k tokens on four ranks, which one rank alone has no room for; scoring models take it whole."""
    large = Machines(nodes=2, gpus=8, gpu_memory=141 * 10**9, cpu_memory=10**12)

    def planned(**sharding: Any) -> Any:
        four = {"ranks": 4, "zero": 3, "micro_batch": 1, "gradient_checkpointing": True} | sharding
        config = run_of(policy=four, value=four)
        models = config.models.model_copy(update={"context": 65_536})
        return make_plan(config.model_copy(update={"models": models}), large, NOTHING)

    alone, together = planned(), planned(sequence_parallel=4)
    kept = [
        {one.role: one.device["update"].get("activations", 0) for one in plan.ppo.stage.workers}
        for plan in (alone, together)
    ]
    assert all(kept[0][role] == 4 * kept[1][role] > 0 for role in ("policy", "value"))
    scored = [{one.role: one.device["score"] for one in plan.ppo.stage.workers} for plan in (alone, together)]
    assert scored[0]["reference"] == scored[1]["reference"]
    found = suggest(together, NOTHING)
    assert found is not None
    for role, changes in yaml.safe_load(found.lines or "ppo: {}")["ppo"].items():
        assert role not in ("policy", "value") or changes["ranks"] % 4 == 0, found.lines


def test_cpus_are_counted() -> None:
    config = run_of(placement={"policy": {"gpus": 1, "cpus": 3.0}})
    enough = make_plan(config, replace(H100, cpus=8), NOTHING)
    assert not [line for line in enough.problems if "CPUs" in line]
    short = make_plan(config, replace(H100, nodes=1, gpus=16, cpus=12), NOTHING)
    assert [line for line in short.problems if "CPUs" in line] == [
        "ppo: asks for 14 CPUs of 12 (what ppo.placement adds up to); lower cpus, or workers and ranks"
    ]
    assert short.verdict == "does not fit"


def test_models_by_role() -> None:
    found = shapes(run_of(), Assumed({"": "llama-8b", "reward": "llama-1b", "pretrained": "llama-3b"}))
    assert found["policy"].name == "llama-3b" and found["reward"].name == "llama-1b"
    assert found["assistant"].name == "llama-8b"
    with pytest.raises(ConfigError, match="--model critic="):
        shapes(run_of(), Assumed({"critic": "llama-8b"}))


def test_adapters_by_hand_and_as_peft_makes_them() -> None:
    from peft import LoraConfig as PeftLora
    from peft import inject_adapter_in_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from cai_dist.config.training import LoraConfig
    from cai_dist.plan.shapes import shape_of

    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=160,
        vocab_size=100, head_dim=16,
    )  # fmt: skip
    found = trained_elements(shape_of(config.to_dict(), "tiny"), LoraConfig(rank=4), causal=True)
    assert found.trained == 2 * 4 * (128 + 96 + 96 + 128 + 224 + 224 + 224)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = inject_adapter_in_model(PeftLora(r=4, target_modules=names), LlamaForCausalLM(config))
    assert found.trained == sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)


def test_fewer_tokens_take_less_and_a_sample_is_never_longer_than_the_context() -> None:
    def update(assumed: Assumed) -> int:
        plan = make_plan(run_of(policy={"ranks": 4, "zero": 3, "micro_batch": 8}), H100, assumed)
        assert plan.ppo is not None
        return sum(plan.ppo.stage.workers[0].device["update"].values())

    assert update(Assumed({}, prompt=100)) < update(NOTHING) == update(Assumed({}, prompt=10_000))


def test_a_conversation_is_never_longer_than_the_context() -> None:
    config = run_of(environment={"answers": 100})
    assert config.ppo.longest_response > config.models.context
    for assumed in (NOTHING, Assumed({}, prompt=100)):
        tokens = tokens_of(config, assumed, config.ppo.longest_response)
        assert tokens.sequence == config.models.context > tokens.wanted > 0


def test_the_demo_is_planned_on_this_cpu() -> None:
    plan = make_plan(load_run("launch/runs/demo.yaml"), Machines(cpu_memory=24 * 2**30), NOTHING)
    assert plan.verdict == "fits" and plan.seconds is None
    assert [one.stage.name for one in plan.stages] == ["ppo", "generation", "sft", "preference"]
    assert plan.equation.startswith("128 prompts x 1 sample = 128 = 2 mini-batches x 64; 2 epochs")
    assert plan.shapes["policy"].parameters == 152_896


def test_on_a_cpu_offload_frees_nothing_and_is_not_suggested() -> None:
    machines, small = Machines(cpu_memory=8 * 2**30), Assumed({"": "llama-1b"})
    plain = make_plan(run_of(gpus=0.0), machines, small)
    offloaded = make_plan(
        run_of(gpus=0.0, policy={"ranks": 4, "zero": 3, "ds_config": "zero3_offload"}), machines, small
    )
    assert plain.ppo is not None and offloaded.ppo is not None
    kept = [one.ppo.stage.workers[0].device["rollout"] for one in (plain, offloaded)]
    assert kept[1]["optimizer"] > kept[0]["optimizer"] and kept[1]["weights"] == kept[0]["weights"]
    assert plain.verdict == "does not fit" and "phase" not in plain.problems[0]
    found = suggest(plain, small)
    assert found is not None and found.lines == "" and "no ZeRO stage on these hosts" in found.why


def test_a_run_that_asks_for_gpus_is_not_judged_by_a_host() -> None:
    assert suggest(make_plan(run_of(), Machines(cpu_memory=10**12), NOTHING), NOTHING) is None
