"""PPO with adapters: the real coordinator on real actors, two ranks, no reference workers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import cai_dist
from cai_dist.cluster.ppo.groups import PpoGroups, PpoModels
from cai_dist.config.placement import PlacementConfig, RoleShards
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.training import LoraConfig, OptimizerConfig, SamplingConfig, ShardingConfig
from cai_dist.coordinator import loop
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.models.load import load_hf_causal, load_scalar
from cai_dist.tracking.checkpoints import CheckpointStore
from cai_dist.types import GenerateRequest, Generation, RankInfo, SamplingParams, Trajectory
from cai_dist.workers.rollout import RolloutWorker
from tests.ids import ids_of, prompt_of, response_of
from tests.integration.by_value import ByValue
from tests.integration.conftest import TIMEOUTS
from tests.integration.warm import WarmCluster
from tests.tiny import END, VOCAB, plain_logprobs, save_llama

TEMPERATURE = 0.7
GREEDY = SamplingParams(12, 0.0, 1.0, (END,))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> PpoModels:
    policy = save_llama(tmp_path_factory.mktemp("policy"), tied=True, seed=1)
    reward = str(tmp_path_factory.mktemp("reward"))
    load_scalar(policy, "fp32", seed=5).hf.save_pretrained(reward)
    return PpoModels(policy=policy, reference="", reward=reward, value=reward)


def ppo_config(zero: int, save: str, ds_config: str | None) -> PpoConfig:
    few = PlacementConfig(cpus=0.1)
    shard = ShardingConfig(ranks=2, zero=zero, micro_batch=1, ds_config=ds_config)  # type: ignore[arg-type]
    return PpoConfig(
        iterations=2,
        prompts_per_iteration=6,
        mini_batch=6,
        policy=shard,
        value=shard,
        policy_optimizer=OptimizerConfig(lr=0.01, grad_clip=10.0),
        value_optimizer=OptimizerConfig(lr=0.01),
        lora=LoraConfig(rank=4, alpha=16.0, save=save),  # type: ignore[arg-type]
        sampling=SamplingConfig(max_new_tokens=8, temperature=TEMPERATURE),
        transfer_bucket_mb=0.02,
        placement=RoleShards(policy=few, value=few, reward=few, rollout=few),
    )


@pytest.fixture(params=["zero 2, merged", "zero 3, adapter"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> PpoConfig:
    if request.param == "zero 2, merged":
        return ppo_config(2, "merged", None)
    settings = json.loads((Path(cai_dist.__file__).parent / "ds_configs" / "zero3.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # split small tensors, too
    (tmp_path / "zero3.json").write_text(json.dumps(settings))
    return ppo_config(3, "adapter", str(tmp_path / "zero3.json"))


@pytest.fixture
def roles(warm: WarmCluster, models: PpoModels, config: PpoConfig) -> Iterator[ByValue]:
    made = PpoGroups(
        warm, config, models, dtype="fp32", end_id=END, policy_steps=4, value_steps=4, seed=0, timeouts=TIMEOUTS
    )
    with made as running:
        yield ByValue(running)


def same(one: Sequence[Any], two: Sequence[Any]) -> bool:
    """Whether two lists of arrays are equal, bit for bit."""
    return len(one) == len(two) and all(map(np.array_equal, one, two))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ppo_on_adapters(roles: ByValue, config: PpoConfig, models: PpoModels, tmp_path: Path) -> None:
    rng = random.Random(0)
    ids = [tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 9))) for _ in range(12)]
    prompts = [TokenizedPrompt(f"p{i}", "helpful" if i % 2 else "red_team", one) for i, one in enumerate(ids)]
    samples = [
        Generation(one, tuple(rng.randrange(3, VOCAB) for _ in range(5)), (-1.0,) * 5, "length", 0) for one in ids[:5]
    ]
    assert set(roles._groups) == {"policy", "value", "reward", "rollout"}
    reference = roles.reference_logprobs(samples, TEMPERATURE).result()
    policy = roles.policy_logprobs(samples, TEMPERATURE).result()
    assert same(policy, reference), "B = 0: the policy starts as the base"
    net = AutoModelForCausalLM.from_pretrained(models.policy)
    for sample, row in zip(samples, reference, strict=True):
        tokens = torch.tensor(ids_of(sample))
        with torch.no_grad():
            expected = plain_logprobs(net(tokens[None]).logits[0], tokens, TEMPERATURE)[-5:]
        assert row == pytest.approx(expected.tolist(), abs=1e-5)

    logged: list[dict[str, float]] = []
    seen: list[Trajectory] = []
    loop.train(
        roles.roles, prompts, config, seed=3, stop_ids=(END,), checkpoints=CheckpointStore(tmp_path / "checkpoints"),
        log=lambda step, **numbers: logged.append(numbers), should_stop=lambda: False,
        on_rollout=lambda iteration, batch: seen.extend(batch),
    )  # fmt: skip
    first, second = logged
    assert first["kl_per_token"] == 0.0 and abs(second["kl_per_token"]) > 1e-4
    again = roles.reference_logprobs(samples, TEMPERATURE).result()
    assert same(again, reference), "the base is what it was, bit for bit"
    assert not same(roles.policy_logprobs(samples, TEMPERATURE).result(), reference)

    sampled = roles.generate(ids, SamplingParams(12, TEMPERATURE, 1.0, (END,)), 1).result()
    for one, row in zip(sampled, roles.policy_logprobs(sampled, TEMPERATURE).result(), strict=True):
        assert row == pytest.approx(one.logprobs, abs=1e-4), "the workers have what the policy is, adapters and all"
    whole = sum(4 * p.numel() for p in net.parameters())
    adapted = [p.shape for name, p in net.named_parameters() if "layers" in name and p.dim() > 1]
    adapters = sum(4 * 4 * (rows + columns) for rows, columns in adapted)
    assert roles.sync_weights(50)["bytes"] == adapters < whole, "the adapter travels alone"
    greedy = roles.generate(ids, GREEDY, 0).result()
    roles.export(tmp_path / "model")
    assert (tmp_path / "model" / "adapter_config.json").is_file() == (config.lora.save == "adapter")
    trained = load_hf_causal(str(tmp_path / "model"), "fp32")
    for sample in greedy:
        out = trained.generate(torch.tensor([prompt_of(sample)]), max_new_tokens=12, do_sample=False, eos_token_id=END)
        assert tuple(out[0, len(sample.prompt_ids) :].tolist()) == response_of(sample)
    request = GenerateRequest(tuple(ids), GREEDY, 0, str(tmp_path / "model"))
    served = RolloutWorker(RankInfo("evaluate", 0, 1)).generate(request)
    assert [response_of(one) for one in served] == [response_of(one) for one in greedy]
    request = GenerateRequest(tuple(ids), GREEDY, 0, models.policy)
    base = RolloutWorker(RankInfo("evaluate", 0, 1)).generate(request)
    assert [response_of(one) for one in base] != [response_of(one) for one in greedy], "it has learnt something"

    roles.save(tmp_path / "saved")
    for role in ("policy", "value"):
        assert "rank 4, alpha 16" in json.loads((tmp_path / "saved" / role / "engine.json").read_text())["lora"]
    steps: list[Any] = []
    for asked in (False, True):  # asking the reference in between changes no step
        if asked:
            roles.load(tmp_path / "saved")
            roles.reference_logprobs(samples, TEMPERATURE).result()
        update = roles.update_policy(seen[-6:], 48.0, 0.0), roles.update_value(seen[-6:])
        steps.append(([one.result() for one in update], roles.policy_logprobs(samples, TEMPERATURE).result()))
    assert steps[0][0] == steps[1][0]
    assert same(steps[0][1], steps[1][1])
