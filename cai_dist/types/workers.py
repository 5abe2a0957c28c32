"""What workers are, and what they are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from cai_dist.types.refs import RemoteRow
from cai_dist.types.samples import SamplingParams

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StepShard(Generic[T]):
    """One rank's part of one optimiser step (or of one scoring pass).

    Every rank of a step gets the same number of micro-batches; an empty micro-batch still runs a forward and a backward
    pass (of zero loss), so that no rank misses a collective call.
    """

    micro_batches: tuple[tuple[T, ...], ...]
    denominator: float = 1.0
    """Global count (over all ranks and micro-batches) that the summed loss is divided by."""

    def rows(self) -> Iterator[RemoteRow[Any]]:
        """Items that are kept somewhere (`HasRemoteRows`)."""
        return (item for part in self.micro_batches for item in part if isinstance(item, RemoteRow))

    def resolve(self, found: Callable[[RemoteRow[Any]], Any]) -> StepShard[Any]:
        """This shard with those items themselves."""
        parts = tuple(tuple(found(i) if isinstance(i, RemoteRow) else i for i in part) for part in self.micro_batches)
        return replace(self, micro_batches=parts)


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Prompts for one worker; the same request gives the same samples on any worker: (seed, number of the prompt) alone
    drive sampling."""

    prompts: tuple[tuple[int, ...], ...]
    sampling: SamplingParams
    seed: int
    model: str = ""
    """Folder of the model to answer with; empty: the one that is loaded."""
    first: int = 0
    """Number of the first prompt in the call that this request is a part of: however a call is cut into requests, its
    samples are the same."""
    numbers: tuple[int, ...] = ()
    """Number of each prompt, where they do not follow each other from `first`; empty: they do."""

    def number(self, place: int) -> int:
        """Number of the prompt in this place of the request."""
        return self.numbers[place] if self.numbers else self.first + place

    def part(self, start: int, end: int) -> GenerateRequest:
        """The request for the prompts in the places from `start` to before `end`: it has the same samples as these."""
        return replace(
            self,
            prompts=self.prompts[start:end],
            first=self.first + start,
            numbers=self.numbers[start:end],
        )


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """For each prompt, the summed log-probability of each label's tokens as continuation."""

    prompts: tuple[tuple[int, ...], ...]
    labels: tuple[tuple[int, ...], ...]
    model: str = ""


@dataclass(frozen=True, slots=True)
class WeightProbe:
    """A question about a model, with the answer of the one who trains it: prompt i of `asked` is followed by its label
    i, of one token, with log-probability i (nats)."""

    asked: LabelRequest
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RankInfo:
    """A worker's place in its group. `master_addr`/`master_port` are those of rank 0 of its own group
    (torch.distributed)."""

    role: str
    rank: int
    world_size: int
    local_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 0


Phase = Literal["rollout", "score", "update", "transfer"]
"""Of one iteration of PPO."""
MemoryPart = Literal["weights", "optimizer"]
"""Of a worker's memory. `optimizer`: its states, fp32 masters and gradients; `weights` of a rollout worker: its engine
with all caches."""
PHASE_NEEDS: Mapping[str, Mapping[str, tuple[MemoryPart, ...]]] = {
    "transfer": {"policy": ("weights",), "rollout": ("weights",)},
    "rollout": {"rollout": ("weights",)},
    "score": dict.fromkeys(("policy", "value", "reference", "reward"), ("weights",)),
    "update": dict.fromkeys(("policy", "value"), ("weights", "optimizer")),
}
"""What of each role that shares its GPU is on it in which phase."""


@dataclass(frozen=True, slots=True)
class Span:
    """Something that one worker did."""

    role: str
    rank: int
    name: str
    start: float
    """Seconds since 1970, by the clock of the worker's node."""
    end: float


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What to build in a worker process: `target`, called as Class(rank_info, **kwargs).

    `target`: a kind of `cai_dist.workers.registry.WORKERS`, or "package.module:Class".

    `yields`: where there are fewer cores than workers, those that do not yield go first.
    """

    target: str
    kwargs: dict[str, Any]
    yields: bool = False
