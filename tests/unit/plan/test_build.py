"""Whole plans: what fits, what does not and why, what is suggested."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from cai_dist.config.loading.load import build_run, load_run
from cai_dist.config.run import RunConfig
from cai_dist.errors import ConfigError
from cai_dist.plan.build import make_plan
from cai_dist.plan.machines import Machines
from cai_dist.plan.roles import Assumed, shapes, tokens_of, trained_elements
from cai_dist.plan.shapes import PRESETS
from cai_dist.plan.suggest import suggest
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
    assert policy.device["start"]["weights"] == 2 * PRESETS["llama-8b"].parameters


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
    """Adapters are PPO's alone, and there only where it has none yet; an engine has no ZeRO stage."""
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


def test_70b_is_whole_in_every_worker_at_its_start() -> None:
    assumed = Assumed({"": "llama-70b"})
    plan = make_plan(run_of(), replace(H100, nodes=64), assumed)
    line = next(line for line in plan.problems if line.startswith("ppo: GPU"))
    assert "in phase start" in line and "before it is partitioned" in line
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
    # No stage below the suggested one fits there.
    lower = {"policy": {"zero": again.ppo.policy.zero - 1, "ds_config": None}}
    lower["value"] = lower["policy"]
    less = build_run(_merged(again.model_dump(mode="json"), {"ppo": lower}))
    tight = make_plan(less, replace(H100, nodes=1), NOTHING)
    assert tight.ppo is not None and any(load.verdict != "fits" for load in tight.ppo.loads.gpus)


def _merged(base: dict, over: dict) -> dict:
    return base | {
        k: _merged(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in over.items()
    }


def test_a_run_that_fits_is_left_alone_and_told_if_a_lower_stage_would_do() -> None:
    small = Assumed({"": "llama-1b"})
    found = suggest(make_plan(run_of(), H100, small), small)
    assert found is not None and found.lines == "" and "zero1 would do" in found.why


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
