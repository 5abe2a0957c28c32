"""What the coordinator needs of the world. The real implementation is `cai_dist.cluster.ppo.groups.PpoGroups`
(Ray actors); unit tests use fakes. Lists are always whole (all samples of the call, in order); how they are split over
ranks and padded into equal schedules is the implementation's business."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cai_dist.experience.moments import Whitening
from cai_dist.experience.trajectories import Sums, TrajectoryRequest
from cai_dist.types import Generation, Phase, RemoteRow, SampleRef, SamplingParams, Span, TrajectoryRef

R = TypeVar("R", covariant=True)
RemoteRows = list[RemoteRow[Any]]
"""One a sample, in the order of the samples: what stays with the worker that made it."""


class Pending(Protocol[R]):
    """A call under way on a group of workers."""

    def result(self, meanwhile: Callable[[], None] | None = None) -> R:
        """Wait (with the group's deadline) and return; raises WorkerError or WorkerTimeout. `meanwhile` is called again
        and again during the wait."""
        ...


class PendingParts(Protocol):
    """Samples under way: taken all together, or part by part as they finish."""

    def parts(self) -> Iterator[tuple[int, list[SampleRef]]]:
        """(place of the first one in the call, samples of one request), in the order in which requests finish; raises
        as `result` does."""
        ...

    def ready(self) -> list[tuple[int, list[SampleRef]]]:
        """The `parts` that are there by now, without waiting; `parts` then gives the others. Raises as `result`
        does."""
        ...

    def result(self) -> list[SampleRef]:
        """All samples, in the order of the prompts; waits (with the group's deadline). Raises WorkerError or
        WorkerTimeout."""
        ...


class PpoRoles(Protocol):
    """The roles of PPO. All calls but `enter`, `fetch`, `hold`, `sync_weights`, `spans`, `save`, `load`, `export`
    return at once with something pending.

    `values` and `update_value` are called only for an algorithm with a value model.
    """

    def enter(self, phase: Phase) -> None:
        """What follows belongs to `phase`: roles that share a GPU make room for those that the phase needs. It is
        called before the first call of each phase; a phase may be entered while a call of an earlier one is under way
        only where rollout shares with no other role (`PpoConfig.rollout_alone`)."""
        ...

    def spans(self) -> list[Span]:
        """What every worker has done since this was last asked."""
        ...

    def generate(self, prompts: Sequence[tuple[int, ...]], sampling: SamplingParams, seed: int) -> PendingParts:
        """One sampled response per prompt; the samples depend on prompts, sampling, seed and weights alone."""
        ...

    def fetch(self, rows: Sequence[RemoteRow[Any]]) -> list[Any]:
        """What rows stand for, brought to the driver: a cost that grows with the tokens. Raises WorkerDied."""
        ...

    def hold(self, prompts: Sequence[tuple[int, ...]], samples: Sequence[Generation]) -> list[SampleRef]:
        """Hand samples over that the driver has, of these prompts. Raises CaiError where they are not."""
        ...

    def policy_logprobs(self, samples: Sequence[SampleRef], temperature: float) -> Pending[RemoteRows]:
        """Per sample, the log-probability (nats) of each response token under the policy."""
        ...

    def reference_logprobs(self, samples: Sequence[SampleRef], temperature: float) -> Pending[RemoteRows]:
        """Per sample, the log-probability (nats) of each response token under the reference."""
        ...

    def values(self, samples: Sequence[SampleRef]) -> Pending[RemoteRows]:
        """Per sample, V of the state before each response token and, last, of the state after them: one number more
        than tokens."""
        ...

    def scores(self, samples: Sequence[SampleRef]) -> Pending[list[float]]:
        """Per sample, the raw score (logits) of the preference model on prompt + response."""
        ...

    def make_trajectories(self, request: TrajectoryRequest) -> Pending[tuple[RemoteRows, list[Sums]]]:
        """What is trained on, of all samples of the iteration; sums of each part that they were divided into."""
        ...

    def update_policy(
        self, batch: Sequence[TrajectoryRef], denominator: float, kl_coefficient: float, whitening: Whitening | None
    ) -> Pending[dict[str, float]]:
        """One optimiser step of the policy on one mini-batch.

        `denominator` is that of the loss, `kl_coefficient` the weight of its KL term if it has one, `whitening` what
        advantages go through (None: they are used as they are). The metrics hold
        `approx_kl`: KL(old || new) before the step, nats per token.
        """
        ...

    def update_value(self, batch: Sequence[TrajectoryRef]) -> Pending[dict[str, float]]:
        """One optimiser step of the value model on one mini-batch."""
        ...

    def sync_weights(self, version: int) -> dict[str, float]:
        """Policy ranks -> rollout workers, whole or not at all; returns seconds and bytes."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that the next step of policy and value depends on."""
        ...

    def load(self, folder: Path) -> None:
        """Go on from `save`; raises CheckpointError."""
        ...

    def export(self, folder: Path) -> None:
        """Write the policy in the Hugging Face layout."""
        ...


class Checkpoints(Protocol):
    """A folder of whole checkpoints (`cai_dist.tracking.checkpoints.CheckpointStore`)."""

    def write(self, step: int) -> AbstractContextManager[Path]:
        """Yield an empty folder; it becomes the checkpoint of `step` when the block ends without an exception."""
        ...

    def latest(self) -> tuple[int, Path] | None:
        """The newest whole checkpoint."""
        ...


class Log(Protocol):
    """Where metrics go: one call an iteration, `step` = iterations finished."""

    def __call__(self, step: int, **numbers: float) -> None: ...
