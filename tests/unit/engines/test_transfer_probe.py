"""After a transfer an engine is asked what the trainer says of a few sequences; another answer leaves it stale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cai_dist.config.ppo import PpoConfig
from cai_dist.config.training import OptimizerConfig, ShardingConfig
from cai_dist.errors import StaleEngineError, WeightTransferError
from cai_dist.losses.policy import PolicyObjective
from cai_dist.types import GenerateRequest, LabelRequest, RankInfo, SamplingParams, WeightProbe
from cai_dist.weight_sync.probe import probe_of, probe_sample, refuse_other_answers
from cai_dist.workers.policy import PolicyWorker
from cai_dist.workers.rollout import RolloutWorker
from tests.tiny import END, VOCAB, save_llama

ASKED = GenerateRequest(((3, 4, 5),), SamplingParams(4, 0.0, 1.0, (END,)), seed=0)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PolicyWorker:
    return PolicyWorker(
        RankInfo("policy", 0, 1),
        model=save_llama(tmp_path_factory.mktemp("policy"), tied=True, seed=1),
        dtype="fp32",
        optimizer=OptimizerConfig(),
        sharding=ShardingConfig(ranks=1),
        total_steps=1,
        objective=PolicyObjective(clip=0.2),
        temperature=0.7,
        ppo=PpoConfig(),
    )


@pytest.fixture
def rollout(tmp_path: Path) -> RolloutWorker:
    other = save_llama(tmp_path, tied=True, seed=2)
    return RolloutWorker(RankInfo("rollout", 0, 1), model=other, require_sync=True)


def send(policy: PolicyWorker, rollout: RolloutWorker, version: int, probe: WeightProbe | None) -> None:
    plan = policy.weight_plan(2**20, [rollout.weights_held()])
    rollout.begin_weights(version, plan.manifest, plan.terms)
    for bucket in plan.buckets:
        rollout.accept_weights(policy.weight_part(bucket, plan.terms is None))
    rollout.finish_weights(version, probe)


def test_an_engine_that_got_the_weights_says_what_the_trainer_says(
    policy: PolicyWorker, rollout: RolloutWorker
) -> None:
    probe = policy.probe()
    tokens = {token for prompt in probe.asked.prompts for token in prompt}
    assert len(probe.logprobs) == 4 and max(tokens) > VOCAB / 2
    send(policy, rollout, 1, probe)
    assert rollout.weight_version == 1 and rollout.status()["engine"] == "ready"
    distance = refuse_other_answers(probe, rollout.score_labels(probe.asked), 0.001, 1)
    assert distance < 1e-5  # at temperature 1, whatever the sampler's is


def test_an_engine_that_computes_something_else_stays_stale(
    policy: PolicyWorker, rollout: RolloutWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = policy.probe()
    score = rollout._engine.score_labels

    def wrong(request: LabelRequest) -> list[tuple[float, ...]]:
        return [tuple(one + 0.002 for one in row) for row in score(request)]

    monkeypatch.setattr(rollout._engine, "score_labels", wrong)
    with pytest.raises(WeightTransferError, match="version 5: all of it came, but .*0.002 nats .*engine.backend"):
        send(policy, rollout, 5, probe)
    assert rollout.weight_version == -1 and rollout.status()["engine"] == "stale"
    with pytest.raises(StaleEngineError, match="computes another model"):
        rollout.generate(ASKED)
    with pytest.raises(StaleEngineError, match="computes another model"):
        rollout.score_labels(probe.asked)
    monkeypatch.undo()
    send(policy, rollout, 6, probe)
    assert rollout.weight_version == 6 and len(rollout.generate(ASKED)) == 1


def test_answers_that_are_no_numbers_are_refused() -> None:
    sample = probe_sample(50)
    probe = probe_of(sample, [float(i) for i in range(8)])
    assert probe.logprobs == (0.0, 2.0, 4.0, 6.0) and probe.asked.labels[1] == (int(sample.response_ids[2]),)
    said = [[10.0, 0, 0, 0], [0, 12.0, 0, 0], [0, 0, 14.0, 0], [0, 0, 0, 16.0]]
    with pytest.raises(WeightTransferError, match="10 nats"):
        refuse_other_answers(probe, said, 0.2, 1)
    assert refuse_other_answers(probe, np.diag(probe.logprobs).tolist(), 0.2, 1) == 0.0
    with pytest.raises(WeightTransferError, match="nan nats"):
        refuse_other_answers(probe, [(float("nan"),) * 4] * 4, 0.2, 1)
