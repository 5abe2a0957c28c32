"""Five roles on Ray: what they compute, and weights that arrive whole or not at all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cai_dist.cluster.ppo.groups import PpoGroups, PpoModels
from cai_dist.cluster.ppo.weight_transfer import WeightTransfer
from cai_dist.cluster.runtime import Cluster, GroupSpec
from cai_dist.config.placement import PlacementConfig, RoleShards
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.training import OptimizerConfig, SamplingConfig, ShardingConfig
from cai_dist.errors import WorkerError
from cai_dist.models.load import load_scalar
from cai_dist.types import Generation, SamplingParams, Trajectory, WorkerSpec
from tests.ids import ids_of, prompt_of, response_of
from tests.integration.by_value import ByValue
from tests.integration.conftest import TIMEOUTS
from tests.integration.warm import WarmCluster
from tests.tiny import END, VOCAB, save_llama

TEMPERATURE = 0.7
SAMPLING = SamplingParams(12, TEMPERATURE, 1.0, (END,))
GREEDY = SamplingParams(12, 0.0, 1.0, (END,))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> PpoModels:
    policy = save_llama(tmp_path_factory.mktemp("policy"), tied=True, seed=1)
    reference = save_llama(tmp_path_factory.mktemp("reference"), tied=True, seed=2)
    reward = str(tmp_path_factory.mktemp("reward"))
    load_scalar(reference, "fp32", seed=5).hf.save_pretrained(reward)
    return PpoModels(policy=policy, reference=reference, reward=reward, value=reward)


@pytest.fixture(scope="module")
def roles(warm: WarmCluster, models: PpoModels) -> Iterator[ByValue]:
    few = PlacementConfig(cpus=0.1)
    ppo = PpoConfig(
        policy=ShardingConfig(ranks=2, zero=3, micro_batch=2),
        value=ShardingConfig(ranks=1, zero=2, micro_batch=4),
        policy_optimizer=OptimizerConfig(lr=0.02, grad_clip=10.0),
        value_optimizer=OptimizerConfig(lr=0.01),
        prompts_per_iteration=8,
        mini_batch=8,
        sampling=SamplingConfig(temperature=TEMPERATURE, max_new_tokens=12),
        transfer_bucket_mb=0.02,
        placement=RoleShards(policy=few, value=few, reference=few, reward=few, rollout=few),
    )
    made = PpoGroups(
        warm, ppo, models, dtype="fp32", end_id=END, policy_steps=4, value_steps=4, seed=0, timeouts=TIMEOUTS
    )
    with made:
        with pytest.raises(WorkerError, match=r"rollout\[0\].*StaleEngineError"):
            made.generate([(5, 6)], SAMPLING, 0).result()
        made.sync_weights(0)
        yield ByValue(made)


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    rng = random.Random(0)
    return [tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 9))) for _ in range(7)]


def plain_logprobs(model: str, sample: Generation, temperature: float) -> list[float]:
    net = AutoModelForCausalLM.from_pretrained(model)
    ids = torch.tensor([ids_of(sample)])
    with torch.no_grad():
        rows = torch.log_softmax(net(input_ids=ids).logits[0] / temperature, -1)
    start = len(sample.prompt_ids)
    return [rows[start + i - 1, token].item() for i, token in enumerate(response_of(sample))]


def trajectories(samples: list[Generation], logprobs: list[list[float]], values: list[list[float]]) -> list[Trajectory]:
    rng = random.Random(1)
    return [
        Trajectory(
            prompt_ids=prompt_of(s),
            response_ids=response_of(s),
            old_logprobs=tuple(lp),
            ref_logprobs=tuple(lp),
            values=tuple(v[:-1]),
            rewards=(0.0,) * len(lp),
            advantages=tuple(rng.gauss(0, 1) for _ in lp),
            returns=tuple(rng.gauss(0, 1) for _ in lp),
            score=0.0,
            finish=s.finish,
            weight_version=s.weight_version,
            sampler_logprobs=tuple(lp),
            weights=(1.0,) * len(lp),
        )
        for s, lp, v in zip(samples, logprobs, values, strict=True)
    ]


def test_every_role_computes_what_plain_transformers_does(
    roles: ByValue, models: PpoModels, prompts: list[tuple[int, ...]]
) -> None:
    samples = roles.generate(prompts, SAMPLING, 3).result()
    assert [prompt_of(s) for s in samples] == prompts
    assert len({len(s.response_ids) for s in samples}) > 1, "ragged responses are part of this test"
    policy = roles.policy_logprobs(samples, TEMPERATURE)
    reference = roles.reference_logprobs(samples, TEMPERATURE)
    values, scores = roles.values(samples), roles.scores(samples)
    trunk = AutoModelForSequenceClassification.from_pretrained(models.reward)
    for sample, mine, theirs, value, score in zip(
        samples, policy.result(), reference.result(), values.result(), scores.result(), strict=True
    ):
        assert mine == pytest.approx(sample.logprobs, abs=1e-5)
        assert theirs == pytest.approx(plain_logprobs(models.reference, sample, TEMPERATURE), abs=1e-5)
        ids = ids_of(sample) + (() if sample.finish == "stop" else (END,))
        with torch.no_grad():
            hidden = trunk.model(torch.tensor([ids])).last_hidden_state
            heads = trunk.score(hidden)[0, :, 0].tolist()
        start = len(sample.prompt_ids)
        assert value == pytest.approx(heads[start - 1 : start + len(sample.response_ids)], abs=1e-5)
        assert score == pytest.approx(heads[-1], abs=1e-5)


def test_updates_reach_the_rollout_workers_only_by_a_transfer(
    roles: ByValue, prompts: list[tuple[int, ...]], tmp_path: Path
) -> None:
    before = roles.generate(prompts, GREEDY, 0).result()
    samples = roles.generate(prompts, SAMPLING, 3).result()
    batch = trajectories(samples, roles.policy_logprobs(samples, TEMPERATURE).result(), roles.values(samples).result())
    tokens = float(sum(len(item.response_ids) for item in batch))
    updates = roles.update_policy(batch, tokens, 0.1), roles.update_value(batch)
    policy, value = (update.result() for update in updates)
    assert policy["ratio"] == pytest.approx(1.0, abs=1e-4) and policy["grad_norm"] > 0
    assert value["clip_fraction"] == 0 and value["grad_norm"] > 0
    assert roles.update_value(batch).result()["loss"] < value["loss"]
    assert roles.generate(prompts, GREEDY, 0).result() == before

    report = roles.sync_weights(7)
    roles.export(tmp_path)
    after = roles.generate(prompts, GREEDY, 0).result()
    assert [response_of(s) for s in after] != [response_of(s) for s in before]
    assert {s.weight_version for s in after} == {7}
    net = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert report["bytes"] == 4 * sum(p.numel() for p in net.parameters())
    for sample in after:
        out = net.generate(torch.tensor([prompt_of(sample)]), max_new_tokens=12, do_sample=False, eos_token_id=END)
        assert tuple(out[0, len(sample.prompt_ids) :].tolist()) == response_of(sample)


def test_save_and_load_bring_back_both_engines(roles: ByValue, prompts: list[tuple[int, ...]], tmp_path: Path) -> None:
    samples = roles.generate(prompts, SAMPLING, 4).result()
    batch = trajectories(samples, roles.policy_logprobs(samples, TEMPERATURE).result(), roles.values(samples).result())
    roles.save(tmp_path)
    tokens = float(sum(len(item.response_ids) for item in batch))
    first = (
        roles.update_policy(batch, tokens, 0.1).result(),
        roles.update_value(batch).result(),
        roles.values(samples).result(),
    )
    roles.load(tmp_path)
    again = (
        roles.update_policy(batch, tokens, 0.1).result(),
        roles.update_value(batch).result(),
        roles.values(samples).result(),
    )
    assert again[:2] == first[:2]
    assert all(map(np.array_equal, again[2], first[2]))


def test_a_transfer_that_fails_leaves_the_receivers_stale(
    roles: ByValue, cluster: Cluster, prompts: list[tuple[int, ...]], tmp_path: Path
) -> None:
    other = save_llama(tmp_path, tied=True, seed=3, layers=1)
    spec = WorkerSpec("rollout", {"model": other})
    group = cluster.launch([GroupSpec("other", spec, cpus=0.1)])["other"]
    try:
        with pytest.raises(WorkerError, match=r"phase weight transfer: other\[0\].*which this model lacks"):
            WeightTransfer(roles._groups["policy"], group, "object_store", 2**20, 60.0).run(9)
        assert group.broadcast("status", "status")[0]["engine"] == "stale"
    finally:
        group.close()
    roles.sync_weights(10)  # the good receivers are as good as before
    assert roles.generate(prompts[:1], GREEDY, 0).result()[0].weight_version == 10
