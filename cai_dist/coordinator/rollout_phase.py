"""The rollout phase: prompts in, trajectories out.

Who waits for whom:

    choose prompts -> rollout: generate --+-> reference: logprobs --+-> scores, rewards, advantages -> trajectories
                                          +-> policy:    logprobs --+   (each prompt's by a policy rank)
                                          +-> value:     values   --+
                                          +-> reward:    scores   --+

The four in the middle run at the same time, and with streaming they begin when the first samples are there. When
generation happens is the schedule's business (`coordinator.schedules`).

Tokens and their numbers stay with the workers that made them; what passes through the driver are references, a few
numbers a sample, and sums.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cai_dist.config.ppo import PpoConfig
from cai_dist.config.seeds import derive_seed
from cai_dist.coordinator.mismatch_probe import PolicyAnswer, Probe
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.coordinator.protocols import PpoRoles
from cai_dist.coordinator.sample_requests import asked_for, check_samples, sampling_params
from cai_dist.coordinator.score_requests import FrozenScores, Scored, answers, ask_all, score_stream
from cai_dist.coordinator.score_shaping import ShapedScores, shape_scores
from cai_dist.coordinator.state import PpoState
from cai_dist.experience.moments import Moments, Whitening, explained_variance, whitened
from cai_dist.experience.trajectories import Sums, TrajectoryRequest, total
from cai_dist.types import SampleRef, Trajectory, TrajectoryRef


class Brought(Sequence[Trajectory]):
    """The trajectories of some references, brought to the driver when they are looked at."""

    def __init__(self, roles: PpoRoles, refs: Sequence[TrajectoryRef], whitening: Whitening | None) -> None:
        self._roles, self._refs, self._whitening = roles, refs, whitening

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, wanted: Any) -> Any:
        """One of them, or those of a slice. Raises WorkerDied where the worker that keeps them is gone."""
        if not isinstance(wanted, slice):
            return self[wanted : wanted + 1 or None][0]
        return whitened(self._roles.fetch([ref.row for ref in self._refs[wanted]]), self._whitening)

    def __iter__(self) -> Iterator[Trajectory]:
        return iter(self[:])


@dataclass(frozen=True, slots=True)
class Rollout:
    """One iteration's samples, on their way from the rollout to the update phase."""

    trajectory_refs: tuple[TrajectoryRef, ...]
    trajectories: Sequence[Trajectory]
    """The trajectories that those refer to, as they are learned from; looking at one brings it to the driver."""
    whitening: Whitening | None
    """What advantages go through on their way to the loss."""
    explained_variance: float
    """Of the returns, by the values of the rollout phase."""
    metrics: dict[str, float]
    statistics: Moments
    """Of the scores of the run, these included."""

    @property
    def kl_per_response(self) -> float:
        """Mean KL to the reference, nats per response."""
        return self.metrics["kl_per_response"]


def collect(
    roles: PpoRoles,
    prompts: Sequence[TokenizedPrompt],
    config: PpoConfig,
    stop_ids: tuple[int, ...],
    state: PpoState,
    seed: int,
) -> Rollout:
    """Sample the next iteration with the present weights, and score it.

    Args:
        prompts: the whole pool; which of them are used follows from (seed, state.iteration).
        stop_ids: tokens that end a response.

    Raises: DataError (no prompt of a wanted kind), StaleEngineError (samples of other weights than the state's),
        CaiError (an answer of a role that does not fit the samples), WorkerError, WorkerTimeout.
    """
    began = time.perf_counter()
    asked = asked_for(prompts, config, seed, state.iteration)
    ids = [prompt.ids for prompt in asked]
    roles.enter("rollout")
    under_way = roles.generate(ids, sampling_params(config, stop_ids), derive_seed(seed, "rollout", state.iteration))
    if config.streams:
        roles.enter("score")
        samples, scored = score_stream(roles, under_way, ids, config, state.weight_version)
        return _rollout(roles, asked, samples, scored, config, state, began)
    samples = under_way.result()
    check_samples(samples, ids, state.weight_version)
    return evaluate(roles, asked, samples, config, state, began)


def evaluate(
    roles: PpoRoles,
    asked: Sequence[TokenizedPrompt],
    samples: Sequence[SampleRef],
    config: PpoConfig,
    state: PpoState,
    began: float,
    fixed: Mapping[int, FrozenScores] | None = None,
    probe: Probe | None = None,
) -> Rollout:
    """Score samples that are there, with the present weights of all roles.

    Args:
        asked: the prompt of each sample; those of one prompt lie side by side.
        began: when the phase did (`time.perf_counter`).
        fixed: as for `ask_all`.
        probe: under way, for `mismatch_*` of samples that are of older weights.

    Raises: CaiError (an answer of a role that does not fit the samples), WorkerError, WorkerTimeout.
    """
    roles.enter("score")
    questions = ask_all(roles, samples, config, fixed)
    answer = None if probe is None else probe.ask(roles, config)
    return _rollout(roles, asked, samples, answers(questions, samples), config, state, began, answer)


def _rollout(
    roles: PpoRoles,
    asked: Sequence[TokenizedPrompt],
    samples: Sequence[SampleRef],
    scored: Scored,
    config: PpoConfig,
    state: PpoState,
    began: float,
    probe: PolicyAnswer | None = None,
) -> Rollout:
    """Scores of the whole batch; rewards, advantages and weights where the samples are; metrics from their sums."""
    truncated = [sample.finish == "length" for sample in samples]
    lengths = [sample.response_tokens for sample in samples]
    scores = shape_scores(scored.scores, lengths, truncated, config, state.scores)
    request = TrajectoryRequest(
        samples=tuple([sample.row for sample in samples]),
        logprobs=None if scored.logprobs is None else tuple(scored.logprobs),
        reference=tuple(scored.reference),
        values=None if scored.values is None else tuple(scored.values),
        scores=tuple(scored.scores),
        shaped=tuple(scores.scores.tolist()),
        prompts=tuple([(prompt.prompt_id, prompt.kind) for prompt in asked]),
        coefficient=state.kl.coefficient,
        version=state.weight_version,
    )
    refs = roles.make_trajectories(request)
    mismatch = {} if probe is None else probe.metrics(roles)
    rows, parts = refs.result()
    sums = total(parts)
    made = [TrajectoryRef(row, s.tokens, s.response_tokens) for row, s in zip(rows, samples, strict=True)]
    whitening = Whitening.by(sums.advantages) if config.whitens else None
    metrics = _metrics(asked, samples, scored.scores, scores, sums, state)
    if config.environment is not None:
        metrics["turns"] = fmean(sample.turns for sample in samples)
    if config.old_logprobs == "trainer":
        metrics |= sums.distances.metrics() | sums.ratios.metrics()
        if sums.distances.stale.tokens:
            metrics["staleness_max"] = float(state.weight_version - min(s.oldest_version for s in samples))
    metrics |= mismatch
    return Rollout(
        tuple(made),
        Brought(roles, made, whitening),
        whitening,
        explained_variance(sums.returns, sums.residuals),
        {**metrics, "rollout_seconds": time.perf_counter() - began},
        scores.statistics,
    )


def _metrics(
    asked: Sequence[TokenizedPrompt],
    samples: Sequence[SampleRef],
    raw: Sequence[float],
    scores: ShapedScores,
    sums: Sums,
    state: PpoState,
) -> dict[str, float]:
    """What to watch of the samples: scores, distance from the reference, entropy, lengths."""
    metrics = {
        "score": fmean(raw),
        "score_shaped": float(scores.scores.mean()),
        "score_length_slope": scores.slope,
        "reward": sums.rewards / len(samples),
        "kl_per_response": sums.kl / len(samples),
        "kl_per_token": sums.kl / sums.tokens,
        "kl_coefficient": state.kl.coefficient,
        # E[-log p] over samples of p is its entropy.
        "entropy": -sums.logprobs / sums.tokens,
        "response_length": sums.tokens / len(samples),
        "response_tokens": float(sums.tokens),
        "truncated": fmean(float(sample.finish == "length") for sample in samples),
        "weight_version": float(state.weight_version),
    }
    for kind in ("red_team", "helpful"):
        of_kind = [score for prompt, score in zip(asked, raw, strict=True) if prompt.kind == kind]
        if of_kind:
            metrics[f"score_{kind}"] = fmean(of_kind)
    return metrics
