"""Stand-ins for the parts that need processes: deterministic numbers, no clock, no ray."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from cai_dist.config.ppo import PpoConfig
from cai_dist.coordinator import rollout_phase
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.coordinator.rollout_phase import Rollout
from cai_dist.coordinator.state import PpoState
from cai_dist.errors import StaleEngineError, WorkerError
from cai_dist.experience.moments import Whitening, whitened
from cai_dist.experience.sample_checks import kept_rows, kept_samples, samples_of
from cai_dist.experience.trajectories import Sums, TrajectoryRequest, make_trajectories
from cai_dist.types import (
    Generation,
    Phase,
    RemoteRow,
    SampleRef,
    SamplingParams,
    Span,
    Trajectory,
    TrajectoryRef,
    rows_of,
)
from tests.ids import response_of

R = TypeVar("R")


class FakePending(Generic[R]):
    """A call that is "under way" until asked; notes in `calls` when somebody waits for it."""

    def __init__(self, name: str, compute: Callable[[], R], calls: list[str]) -> None:
        self._name, self._compute, self._calls = name, compute, calls

    def result(self, meanwhile: Callable[[], None] | None = None) -> R:
        self._calls.append(f"wait {self._name}")
        if meanwhile is not None:
            meanwhile()
        return self._compute()

    def parts(self) -> Iterator[tuple[int, R]]:
        """All in one part."""
        yield 0, self.result()


class FakeKept(FakePending[Any]):
    """A call whose answer is kept."""

    def __init__(self, pending: FakePending[Any], keep: Callable[[Any], list[Any]]) -> None:
        self._pending, self._keep = pending, keep

    def result(self, meanwhile: Callable[[], None] | None = None) -> list[Any]:
        return self._keep(self._pending.result(meanwhile))


class FakeParts(FakePending[list[SampleRef]]):
    """Samples in parts of `rows`, which finish in the order that `shuffle` gives them."""

    def __init__(self, pending: FakePending[Any], rows: int, shuffle: Callable[[list[int]], list[int]]) -> None:
        self._pending, self._rows, self._shuffle = pending, rows, shuffle
        self._samples: list[SampleRef] | None = None
        self._left: list[int] = []

    def parts(self) -> Iterator[tuple[int, list[SampleRef]]]:
        while part := self.ready():
            yield from part

    def ready(self) -> list[tuple[int, list[SampleRef]]]:
        """The next one."""
        if self._samples is None:
            self._samples = self.result()
            self._left = self._shuffle(list(range(0, len(self._samples), self._rows)))
        if not self._left:
            return []
        start = self._left.pop(0)
        return [(start, self._samples[start : start + self._rows])]

    def result(self, meanwhile: Callable[[], None] | None = None) -> list[SampleRef]:
        return self._pending.result(meanwhile)


def in_memory(prompts: Sequence[tuple[int, ...]], samples: Sequence[Generation]) -> list[SampleRef]:
    """Samples that are kept in a list."""
    kept = kept_samples(prompts, samples)
    return samples_of(rows_of(list(kept.rows), len(kept.rows)), kept.facts)


def stand_for(row: RemoteRow[Any]) -> Any:
    return row.block.ref[row.number]


class FakeRoles:
    """The roles of PPO with one number each for weights.

    The policy's and the value model's numbers move with what they are trained on, the sampler draws from the number
    that it was last given, and after a load it has none until the next transfer: a run that is resumed wrongly shows.
    """

    config: PpoConfig
    """Of the run; who calls the roles sets it."""

    def __init__(
        self, fail_at_update: int | None = None, approx_kl: Sequence[float] = (), skips: Sequence[float] = ()
    ) -> None:
        """`approx_kl`: what the policy's steps report, one after the other; then 0. `skips`: 1 where it leaves one
        out, likewise."""
        self.policy, self.value, self.reference = 0.5, 0.25, 0.5
        self.sampler: tuple[int, float] | None = None
        self.calls: list[str] = []
        self.phases: list[tuple[Phase, int]] = []
        """Phases entered, each with the number of calls before it."""
        self.updates: list[tuple[str, list[Trajectory]]] = []
        self.temperatures: dict[str, float] = {}
        self.policy_updates: list[tuple[float, float]] = []
        """(denominator, KL coefficient) of each step."""
        self.approx_kl, self.skips = iter(approx_kl), iter(skips)
        self.fail_at_update = fail_at_update
        self.rows = 10_000
        """Prompts of one request to the sampler."""
        self.shuffle: Callable[[list[int]], list[int]] = list
        """The order in which requests finish."""

    def enter(self, phase: Phase) -> None:
        self.phases.append((phase, len(self.calls)))

    def spans(self) -> list[Span]:
        return []

    def generate(self, prompts: Sequence[tuple[int, ...]], sampling: SamplingParams, seed: int) -> FakeParts:
        sampler = self.sampler  # as it is now: what comes later waits behind this call
        pending = self._call(
            "generate", lambda: [self._sample(p, sampling, f"{seed}/{n}", sampler) for n, p in enumerate(prompts)]
        )
        return self.sampled(prompts, pending)

    def sampled(self, prompts: Sequence[tuple[int, ...]], pending: FakePending[list[Generation]]) -> FakeParts:
        """As they are when they are kept."""
        return FakeParts(FakeKept(pending, lambda made: in_memory(prompts, made)), self.rows, self.shuffle)

    def fetch(self, rows: Sequence[RemoteRow[Any]]) -> list[Any]:
        return [stand_for(row) for row in rows]

    def hold(self, prompts: Sequence[tuple[int, ...]], samples: Sequence[Generation]) -> list[SampleRef]:
        return in_memory(prompts, samples)

    def policy_logprobs(self, samples: Sequence[SampleRef], temperature: float) -> FakePending[list[RemoteRow[Any]]]:
        self.temperatures["policy"] = temperature
        return self.kept("policy", samples, "policy_logprobs", lambda items: _rows(items, self.policy))

    def reference_logprobs(self, samples: Sequence[SampleRef], temperature: float) -> FakePending[list[RemoteRow[Any]]]:
        self.temperatures["reference"] = temperature
        return self.kept("reference", samples, "reference_logprobs", lambda items: _rows(items, self.reference))

    def values(self, samples: Sequence[SampleRef]) -> FakePending[list[RemoteRow[Any]]]:
        def of(items: list[Generation]) -> list[list[float]]:
            return [[self.value * (i + 1) for i in range(len(item.response_ids) + 1)] for item in items]

        return self.kept("value", samples, "values", of, more=1)

    def scores(self, samples: Sequence[SampleRef]) -> FakePending[list[float]]:
        return self._call("scores", lambda: [sum(response_of(stand_for(s.row))) % 7 / 2 - 1 for s in samples])

    def make_trajectories(self, request: TrajectoryRequest) -> FakePending[tuple[list[RemoteRow[Any]], list[Sums]]]:
        """In two parts."""

        def made() -> tuple[list[RemoteRow[Any]], list[Sums]]:
            rows: list[RemoteRow[Any]] = []
            sums: list[Sums] = []
            for part in request.parts(2, self.config.samples_per_prompt):
                kept = make_trajectories(part.resolve(stand_for), self.config)
                rows += rows_of(list(kept.rows), len(kept.rows))
                sums.append(kept.facts)
            return rows, sums

        return self._call("make_trajectories", made)

    def update_policy(
        self, batch: Sequence[TrajectoryRef], denominator: float, kl_coefficient: float, whitening: Whitening | None
    ) -> FakePending[dict[str, float]]:
        self.policy_updates.append((denominator, kl_coefficient))
        return self._call(
            "update_policy",
            lambda: self._train("policy", whitened([stand_for(item.row) for item in batch], whitening)),
        )

    def update_value(self, batch: Sequence[TrajectoryRef]) -> FakePending[dict[str, float]]:
        return self._call("update_value", lambda: self._train("value", [stand_for(item.row) for item in batch]))

    def sync_weights(self, version: int) -> dict[str, float]:
        self.calls.append(f"sync {version}")
        self.sampler = (version, self.policy)
        return {"seconds": 0.0, "bytes": 8.0}

    def save(self, folder: Path) -> None:
        (folder / "roles.json").write_text(json.dumps({"policy": self.policy, "value": self.value}))

    def load(self, folder: Path) -> None:
        weights = json.loads((folder / "roles.json").read_text())
        self.policy, self.value, self.sampler = weights["policy"], weights["value"], None

    def export(self, folder: Path) -> None:
        self.save(folder)

    def kept(
        self,
        role: str,
        samples: Sequence[SampleRef],
        name: str,
        of: Callable[[list[Generation]], list[list[float]]],
        more: int = 0,
    ) -> FakePending[list[RemoteRow[Any]]]:
        """Numbers of the samples, which stay in a list."""
        items = [stand_for(sample.row) for sample in samples]
        numbers = self._call(name, lambda: of(items))
        return FakeKept(numbers, lambda rows: rows_of(kept_rows(role, items, rows, more).rows, len(rows)))

    def _call(self, name: str, compute: Callable[[], R]) -> FakePending[R]:
        self.calls.append(f"start {name}")
        return FakePending(name, compute, self.calls)

    def _sample(
        self, prompt: tuple[int, ...], sampling: SamplingParams, draw: str, sampler: tuple[int, float] | None
    ) -> Generation:
        if sampler is None:
            raise StaleEngineError("the fake sampler has no weights yet")
        version, weight = sampler
        rng = random.Random(f"{draw}/{prompt}/{weight!r}")
        stop = sampling.stop_ids[0]
        ids = [rng.randrange(stop + 1) for _ in range(sampling.max_new_tokens)]
        stopped = stop in ids
        response = tuple(ids[: ids.index(stop) + 1] if stopped else ids)
        return Generation(
            prompt, response, tuple(_logprobs(response, weight)), "stop" if stopped else "length", version
        )

    def _train(self, role: str, batch: list[Trajectory]) -> dict[str, float]:
        if self.fail_at_update == len(self.updates):
            raise WorkerError("update", role, 0, "here", "the fake was told to fail")
        self.updates.append((role, batch))
        # The order of the batch matters, as it would in floating point.
        signal = 0.0
        for place, item in enumerate(batch, start=1):
            signal += (sum(item.advantages.tolist()) + sum(item.returns.tolist()) + item.score) / place
        if role == "policy":
            if next(self.skips, 0):
                return {"skipped": 1.0}
            self.policy += 1e-3 * signal
            return {"loss": -signal, "ratio": 1.0, "approx_kl": next(self.approx_kl, 0.0)}
        self.value += 1e-3 * signal
        return {"loss": signal}


def _rows(items: Sequence[Generation], weight: float) -> list[list[float]]:
    return [_logprobs(response_of(item), weight) for item in items]


def _logprobs(ids: Sequence[int], weight: float) -> list[float]:
    """A number below 0 for each token, which moves with the weight."""
    return [-1.0 - 0.1 * weight * (token + 1) for token in ids]


def collect(
    roles: FakeRoles,
    prompts: Sequence[TokenizedPrompt],
    config: PpoConfig,
    stop_ids: tuple[int, ...],
    state: PpoState,
    seed: int,
) -> Rollout:
    """The rollout phase with fakes, which have to know the settings."""
    roles.config = config
    return rollout_phase.collect(roles, prompts, config, stop_ids, state, seed)
