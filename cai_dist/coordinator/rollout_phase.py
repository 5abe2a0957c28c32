"""The rollout phase: prompts in, trajectories out.

Who waits for whom:

    choose prompts -> rollout: generate --+-> reference: logprobs --+-> scores, rewards, advantages -> trajectories
                                          +-> policy:    logprobs --+   (on the driver, whole batch)
                                          +-> value:     values   --+
                                          +-> reward:    scores   --+

The four in the middle run at the same time, and with streaming they begin when the first samples are there. When
generation happens is the schedule's business (`coordinator.schedules`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from cai_dist.config.ppo import PpoConfig
from cai_dist.coordinator.mismatch import distances
from cai_dist.coordinator.prompts import TokenizedPrompt, derive_seed
from cai_dist.coordinator.protocols import PpoRoles
from cai_dist.coordinator.rewards import Shaped, shape
from cai_dist.coordinator.sampling import asked_for, check_samples, sampling_params
from cai_dist.coordinator.scores import ShapedScores, shape_scores
from cai_dist.coordinator.scoring import Scored, score, score_stream
from cai_dist.coordinator.state import PpoState, ScoreStatistics
from cai_dist.coordinator.weights import Importance, aggregation_weight, importance
from cai_dist.types import Generation, Trajectory


@dataclass(frozen=True, slots=True)
class Rollout:
    """One iteration's samples, on their way from the rollout to the update phase."""

    trajectories: tuple[Trajectory, ...]
    metrics: dict[str, float]
    statistics: ScoreStatistics
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
        return _rollout(asked, samples, scored, config, state, began)
    samples = under_way.result()
    check_samples(samples, ids, state.weight_version)
    return evaluate(roles, asked, samples, config, state, began)


def evaluate(
    roles: PpoRoles,
    asked: Sequence[TokenizedPrompt],
    samples: Sequence[Generation],
    config: PpoConfig,
    state: PpoState,
    began: float,
) -> Rollout:
    """Score samples that are there, with the present weights of all roles.

    Args:
        asked: the prompt of each sample; those of one prompt lie side by side.
        began: when the phase did (`time.perf_counter`).

    Raises: CaiError (an answer of a role that does not fit the samples), WorkerError, WorkerTimeout.
    """
    roles.enter("score")
    return _rollout(asked, samples, score(roles, samples, config), config, state, began)


def _rollout(
    asked: Sequence[TokenizedPrompt],
    samples: Sequence[Generation],
    scored: Scored,
    config: PpoConfig,
    state: PpoState,
    began: float,
) -> Rollout:
    """Rewards, advantages, weights and metrics of the whole batch."""
    truncated = [sample.finish == "length" for sample in samples]
    lengths = [len(sample.response_ids) for sample in samples]
    scores = shape_scores(scored.scores, lengths, truncated, config, state.scores)
    shaped = shape(
        scored.logprobs, scored.reference, scored.values, scores.scores, truncated, config, state.kl.coefficient
    )
    ratios = importance(scored.logprobs, [sample.logprobs for sample in samples], config.importance_bound)
    trajectories = _trajectories(asked, samples, scored, shaped, ratios, config)
    metrics = _metrics(trajectories, shaped, scores, state)
    if config.old_logprobs == "trainer":
        metrics |= distances(trajectories, state.weight_version) | ratios.metrics()
    return Rollout(trajectories, {**metrics, "rollout_seconds": time.perf_counter() - began}, scores.statistics)


def _trajectories(
    asked: Sequence[TokenizedPrompt],
    samples: Sequence[Generation],
    scored: Scored,
    shaped: Shaped,
    ratios: Importance,
    config: PpoConfig,
) -> tuple[Trajectory, ...]:
    """Cut the padded rows back to each response's length."""

    def row(tensor: Tensor | None, number: int) -> tuple[float, ...]:
        return () if tensor is None else tuple(tensor[number, : len(samples[number].response_ids)].tolist())

    def weights(of_sample: Sequence[float]) -> tuple[float, ...]:
        factor = aggregation_weight(len(of_sample), config)
        return tuple([factor * weight for weight in of_sample])

    return tuple(
        Trajectory(
            prompt_ids=sample.prompt_ids,
            response_ids=sample.response_ids,
            old_logprobs=tuple(scored.logprobs[number]),
            ref_logprobs=tuple(scored.reference[number]),
            values=() if scored.values is None else tuple(scored.values[number][:-1]),
            rewards=row(shaped.rewards, number),
            advantages=row(shaped.advantages, number),
            returns=row(shaped.returns, number),
            score=scored.scores[number],
            finish=sample.finish,
            weight_version=sample.weight_version,
            sampler_logprobs=sample.logprobs,
            weights=weights(of_sample),
            prompt_id=prompt.prompt_id,
            prompt_kind=prompt.kind,
            versions=sample.versions,
        )
        for number, (prompt, sample, of_sample) in enumerate(zip(asked, samples, ratios.weights, strict=True))
    )


def _metrics(
    trajectories: Sequence[Trajectory], shaped: Shaped, scores: ShapedScores, state: PpoState
) -> dict[str, float]:
    """What to watch of the samples: scores, distance from the reference, entropy, lengths."""
    tokens = sum(len(item.response_ids) for item in trajectories)
    kl = float(shaped.kl.sum())
    metrics = {
        "score": fmean(item.score for item in trajectories),
        "score_shaped": float(scores.scores.mean()),
        "score_length_slope": scores.slope,
        "reward": fmean(sum(item.rewards) for item in trajectories),
        "kl_per_response": kl / len(trajectories),
        "kl_per_token": kl / tokens,
        "kl_coefficient": state.kl.coefficient,
        # E[-log p] over samples of p is its entropy.
        "entropy": -sum(sum(item.old_logprobs) for item in trajectories) / tokens,
        "response_length": tokens / len(trajectories),
        "response_tokens": float(tokens),
        "truncated": fmean(float(item.finish == "length") for item in trajectories),
        "weight_version": float(state.weight_version),
    }
    for kind in ("red_team", "helpful"):
        raw = [item.score for item in trajectories if item.prompt_kind == kind]
        if raw:
            metrics[f"score_{kind}"] = fmean(raw)
    return metrics
