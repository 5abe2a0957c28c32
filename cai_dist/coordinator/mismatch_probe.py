"""A look at whether sampler and trainer agree, where an iteration learns from samples of older weights: a few short
samples of the newest weights, which nothing else is done with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cai_dist.config.ppo import PpoConfig
from cai_dist.config.seeds import derive_seed
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.coordinator.protocols import Pending, PendingParts, PpoRoles, RemoteRows
from cai_dist.coordinator.sample_requests import check_samples, sampling_params
from cai_dist.coordinator.state import PpoState
from cai_dist.experience.mismatch import Gaps
from cai_dist.types import SampleRef

TOKENS, PROMPTS = 8, 8
"""At most so many new tokens a sample; at least so many prompts, and one for every rollout worker."""


@dataclass(frozen=True)
class Probe:
    """Samples under way. They follow from (seed, iteration) and the weights alone, and no other sample from them."""

    under_way: PendingParts
    prompts: list[tuple[int, ...]]
    version: int

    @classmethod
    def start(
        cls,
        roles: PpoRoles,
        asked: Sequence[TokenizedPrompt],
        config: PpoConfig,
        stop_ids: tuple[int, ...],
        state: PpoState,
        seed: int,
    ) -> Probe:
        """Set every sampler to work, with the weights that the policy has. In the phase `rollout`."""
        count = max(PROMPTS, config.workers_of("rollout"))
        prompts = [asked[number % len(asked)].ids for number in range(count)]
        limit = min(TOKENS, config.pause_after or TOKENS, config.sampling.max_new_tokens)
        sampling = sampling_params(config, stop_ids, limit)
        seed = derive_seed(seed, "probe", state.iteration)
        return cls(roles.generate(prompts, sampling, seed), prompts, state.weight_version)

    def ask(self, roles: PpoRoles, config: PpoConfig) -> PolicyAnswer:
        """Wait for the samples, and ask the policy about them. In the phase `score`.

        Raises: StaleEngineError (a sampler has other weights), WorkerError, WorkerTimeout.
        """
        samples = self.under_way.result()
        check_samples(samples, self.prompts, self.version)
        return PolicyAnswer(samples, roles.policy_logprobs(samples, config.sampling.temperature))


@dataclass(frozen=True)
class PolicyAnswer:
    """The policy's log-probabilities of the samples, under way."""

    samples: list[SampleRef]
    trainer: Pending[RemoteRows]

    def metrics(self, roles: PpoRoles) -> dict[str, float]:
        """`mismatch_*` (`experience.mismatch`). Raises WorkerError, WorkerTimeout."""
        trainer = roles.fetch(self.trainer.result())
        sampler = [sample.logprobs for sample in roles.fetch([sample.row for sample in self.samples])]
        ours, theirs = (np.concatenate(rows, dtype=np.float64) for rows in (trainer, sampler))
        return Gaps.of(ours - theirs).metrics("mismatch")
