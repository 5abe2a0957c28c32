"""PPO's roles for tests that look at every number: what stays with the workers is brought here, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from cai_dist.cluster.futures import PendingCalls
from cai_dist.cluster.ppo.groups import PpoGroups
from cai_dist.types import Generation, SampleRef, SamplingParams, Trajectory, TrajectoryRef, rows_of
from tests.ids import prompt_of


class Sampled:
    """Samples under way."""

    def __init__(self, result: Callable[[], list[Generation]]) -> None:
        self.result = result


class ByValue:
    """Samples, numbers and trajectories themselves, in place of rows; everything else is that of `roles`."""

    def __init__(self, roles: PpoGroups) -> None:
        self.roles = roles

    def __getattr__(self, name: str) -> Any:
        return getattr(self.roles, name)

    def generate(self, prompts: Sequence[tuple[int, ...]], sampling: SamplingParams, seed: int) -> Sampled:
        under_way = self.roles.generate(prompts, sampling, seed)
        return Sampled(lambda: self.roles.fetch([sample.row for sample in under_way.result()]))

    def policy_logprobs(self, samples: Sequence[Generation], temperature: float) -> PendingCalls[list[list[float]]]:
        return self.roles.policy_logprobs(self._held(samples), temperature).then(self.roles.fetch)

    def reference_logprobs(self, samples: Sequence[Generation], temperature: float) -> PendingCalls[list[list[float]]]:
        return self.roles.reference_logprobs(self._held(samples), temperature).then(self.roles.fetch)

    def values(self, samples: Sequence[Generation]) -> PendingCalls[list[list[float]]]:
        return self.roles.values(self._held(samples)).then(self.roles.fetch)

    def scores(self, samples: Sequence[Generation]) -> PendingCalls[list[float]]:
        return self.roles.scores(self._held(samples))

    def update_policy(
        self, batch: Sequence[Trajectory], denominator: float, kl: float
    ) -> PendingCalls[dict[str, float]]:
        return self.roles.update_policy(refs(batch), denominator, kl, None)

    def update_value(self, batch: Sequence[Trajectory]) -> PendingCalls[dict[str, float]]:
        return self.roles.update_value(refs(batch))

    def _held(self, samples: Sequence[Generation]) -> list[SampleRef]:
        return self.roles.hold([prompt_of(sample) for sample in samples], samples)


def refs(batch: Sequence[Trajectory]) -> list[TrajectoryRef]:
    """Put where workers find them."""
    rows = rows_of(ray.put(list(batch)), len(batch))
    sizes = [(len(item.prompt_ids), len(item.response_ids)) for item in batch]
    return [TrajectoryRef(row, a + b, b) for row, (a, b) in zip(rows, sizes, strict=True)]
