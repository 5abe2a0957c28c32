"""What stays with a worker goes with it, and the error says whose it was."""

from __future__ import annotations

import time

import pytest
import ray

from cai_dist.cluster.ppo.groups import PpoModels
from cai_dist.cluster.runtime import Cluster
from cai_dist.errors import WorkerDied
from cai_dist.types import SamplingParams
from tests.ids import prompt_of
from tests.integration.test_schedules import config_of, groups, models  # noqa: F401

PROMPTS = [(5, 6), (7, 8, 9), (4,)]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_samples_of_a_dead_worker_are_missed_by_its_name(cluster: Cluster, models: PpoModels) -> None:  # noqa: F811
    with groups(cluster, models, config_of()) as roles:
        roles.sync_weights(0)
        roles.enter("rollout")
        samples = roles.generate(PROMPTS, SamplingParams(6, 1.0, 1.0, (1,)), 3).result()
        made = roles.fetch([sample.row for sample in samples])
        assert [prompt_of(item) for item in made] == PROMPTS
        assert [len(item.response_ids) for item in made] == [sample.response_tokens for sample in samples]
        again = roles.hold(PROMPTS, made)
        assert roles.fetch([sample.row for sample in again]) == made
        held = roles.policy_logprobs(samples, 1.0).result()
        assert [len(row) for row in roles.fetch(held)] == [sample.response_tokens for sample in samples]

        del made, again, held  # arrays are views of Ray's store: what somebody looks at outlives its worker
        roles.enter("score")
        ray.kill(roles._groups["rollout"]._members[0].actor)
        with pytest.raises(WorkerDied, match=r"rollout\[0\].*what it keeps of this iteration is lost") as caught:
            for _ in range(40):  # until Ray has seen it
                roles.values(samples).result()
                time.sleep(0.5)
        assert (caught.value.role, caught.value.rank) == ("rollout", 0)
