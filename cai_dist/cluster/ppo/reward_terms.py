"""Reward terms on their workers, and the sum of all terms that is the score of a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from cai_dist.cluster.futures import PendingCalls
from cai_dist.cluster.group import WorkerGroup
from cai_dist.cluster.placement import GroupSpec
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.rewards import MODEL, RewardTerm
from cai_dist.errors import ConfigError
from cai_dist.experience.reward_terms import TermScores
from cai_dist.types import SampleRef, StepShard, WorkerSpec
from cai_dist.workers.prompt_table import PromptTable

ROLE = "reward_terms"


def reward_terms_spec(ppo: PpoConfig, table: PromptTable | None, threads: int) -> list[GroupSpec]:
    """The group that calls the terms of one's own; none where there are none. Raises ConfigError without a table."""
    own = [term for term in ppo.rewards if term.own]
    if not own:
        return []
    if table is None:
        raise ConfigError("ppo.rewards: reward terms of one's own need the prompts in words")
    place = ppo.placement.reward_terms
    kwargs = {"terms": own, "table": table, "threads": threads}
    spec = WorkerSpec("reward_terms", kwargs)
    return [GroupSpec(ROLE, spec, workers=ppo.workers_of(ROLE), cpus=place.cpus, gpus=place.gpus)]


class CombinedScores:
    """Scores under way: the weighted sum of the terms, each term's numbers noted on the way."""

    def __init__(
        self,
        terms: Sequence[RewardTerm],
        model: PendingCalls[list[float]] | None,
        own: PendingCalls[list[list[TermScores]]] | None,
        note: Callable[[TermScores], None],
    ) -> None:
        self._terms, self._model, self._own, self._note = terms, model, own, note

    def result(self, meanwhile: Callable[[], None] | None = None) -> list[float]:
        """One score a sample. Raises WorkerError, WorkerTimeout."""
        found = {} if self._own is None else joined(self._own.result(meanwhile))
        if self._model is not None:
            found[MODEL] = TermScores(MODEL, tuple(self._model.result(meanwhile)), math.nan)
        scores = [found[term.shown if term.own else MODEL]._replace(name=term.shown) for term in self._terms]
        for of_term in scores:
            self._note(of_term)
        numbers = [(term.weight, of_term.numbers) for term, of_term in zip(self._terms, scores, strict=True)]
        return [math.fsum(weight * of_term[i] for weight, of_term in numbers) for i in range(len(numbers[0][1]))]


class RewardTerms:
    """The terms of a run and what they have said since the last look."""

    def __init__(self, terms: Sequence[RewardTerm], group: WorkerGroup | None) -> None:
        self._terms, self._group = terms, group
        self._noted: dict[str, list[TermScores]] = {}

    def scores(self, samples: Sequence[SampleRef], model: PendingCalls[list[float]] | None) -> CombinedScores:
        """Have all workers score a share of the samples; `model`: the preference model at work on them, where it is a
        term."""
        own: PendingCalls[list[list[TermScores]]] | None = None
        if self._group is not None:
            size = max(1, -(-len(samples) // len(self._group)))
            rows = [sample.row for sample in samples]
            shards: list[Any] = [StepShard((tuple(rows[at : at + size]),)) for at in range(0, len(rows), size)]
            own = self._group.deal("reward terms", "scores", shards)
        return CombinedScores(self._terms, model, own, self._note)

    def _note(self, found: TermScores) -> None:
        self._noted.setdefault(found.name, []).append(found)

    def metrics(self) -> dict[str, float]:
        """`reward_NAME`, the mean of each term over the samples since this was last asked, and `reward_NAME_seconds`,
        what its calls took together (the preference model's time is in the timeline)."""
        noted, self._noted = self._noted, {}
        found = {}
        for name, parts in noted.items():
            found[f"reward_{name}"] = fmean(number for part in parts for number in part.numbers)
            seconds = math.fsum(part.seconds for part in parts)
            if not math.isnan(seconds):
                found[f"reward_{name}_seconds"] = seconds
        return found


def joined(parts: Sequence[Sequence[TermScores]]) -> dict[str, TermScores]:
    """Numbers of each term from all parts, in their order, and the sum of their seconds."""
    found: dict[str, TermScores] = {}
    for scores in (scores for part in parts for scores in part):
        before = found.get(scores.name, TermScores(scores.name, (), 0.0))
        found[scores.name] = TermScores(scores.name, before.numbers + scores.numbers, before.seconds + scores.seconds)
    return found
