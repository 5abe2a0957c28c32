"""The rollout phase: prompts in, trajectories out.

Who waits for whom:

    choose prompts -> rollout: generate --+-> reference: logprobs --+-> scores, rewards, advantages -> trajectories
                                          +-> policy:    logprobs --+   (on the driver, whole batch)
                                          +-> value:     values   --+
                                          +-> reward:    scores   --+

The four in the middle run at the same time. The policy's are left out where the sampler's log-probabilities are used,
the values where the algorithm has no value model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from cai_dist.config.ppo import PpoConfig
from cai_dist.coordinator.prompts import TokenizedPrompt, choose, derive_seed
from cai_dist.coordinator.protocols import PpoRoles
from cai_dist.coordinator.rewards import Shaped, shape
from cai_dist.coordinator.scores import ShapedScores, shape_scores
from cai_dist.coordinator.state import PpoState, ScoreStatistics
from cai_dist.coordinator.weights import Importance, aggregation_weight, importance
from cai_dist.errors import CaiError, StaleEngineError
from cai_dist.types import Generation, SamplingParams, Trajectory


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


@dataclass(frozen=True, slots=True)
class _Scored:
    """Answers of the scoring roles, in the order of the samples; lists run over response tokens."""

    logprobs: Sequence[Sequence[float]]
    reference: Sequence[Sequence[float]]
    values: Sequence[Sequence[float]] | None
    """One more than tokens: the last is that of the state after them. None without a value model."""
    scores: Sequence[float]


def collect(
    roles: PpoRoles,
    prompts: Sequence[TokenizedPrompt],
    config: PpoConfig,
    stop_ids: tuple[int, ...],
    state: PpoState,
    seed: int,
) -> Rollout:
    """Sample and score the next iteration.

    Args:
        prompts: the whole pool; which of them are used follows from (seed, state.iteration).
        stop_ids: tokens that end a response.

    Raises: DataError (no prompt of a wanted kind), StaleEngineError (samples of other weights than the state's),
        CaiError (an answer of a role that does not fit the samples), WorkerError, WorkerTimeout.
    """
    began = time.perf_counter()
    chosen = choose(prompts, config.prompts_per_iteration, config.helpful_fraction, seed, state.iteration)
    asked = [prompt for prompt in chosen for _ in range(config.samples_per_prompt)]
    samples = _generate(roles, asked, config, stop_ids, state, seed)
    scored = _score(roles, samples, config)
    truncated = [sample.finish == "length" for sample in samples]
    lengths = [len(sample.response_ids) for sample in samples]
    scores = shape_scores(scored.scores, lengths, truncated, config, state.scores)
    shaped = shape(
        scored.logprobs, scored.reference, scored.values, scores.scores, truncated, config, state.kl.coefficient
    )
    ratios = importance(scored.logprobs, [sample.logprobs for sample in samples], config.importance_cap)
    trajectories = _trajectories(asked, samples, scored, shaped, ratios, config)
    metrics = _metrics(trajectories, shaped, scores, state) | _mismatch(trajectories)
    if config.old_logprobs == "trainer":
        metrics |= ratios.metrics()
    return Rollout(trajectories, {**metrics, "rollout_seconds": time.perf_counter() - began}, scores.statistics)


def _generate(
    roles: PpoRoles,
    asked: Sequence[TokenizedPrompt],
    config: PpoConfig,
    stop_ids: tuple[int, ...],
    state: PpoState,
    seed: int,
) -> list[Generation]:
    """One sample for each entry of `asked`, checked to be what was asked for."""
    sampling = SamplingParams(
        max_new_tokens=config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        stop_ids=stop_ids,
    )
    draw = derive_seed(seed, "rollout", state.iteration)
    samples = roles.generate([prompt.ids for prompt in asked], sampling, draw).result()
    if [sample.prompt_ids for sample in samples] != [prompt.ids for prompt in asked]:
        raise CaiError("rollout: the samples do not belong to the prompts that were sent, or not in their order")
    for number, sample in enumerate(samples):
        if sample.weight_version != state.weight_version:
            raise StaleEngineError(
                f"rollout: sample {number} comes from weight version {sample.weight_version}, the policy is at "
                f"{state.weight_version}"
            )
        if not sample.response_ids:
            raise CaiError(f"rollout: sample {number} has no token; a response holds at least its stop token")
    return samples


def _score(roles: PpoRoles, samples: Sequence[Generation], config: PpoConfig) -> _Scored:
    """Ask reference, policy, value and reward at once; then wait for each."""
    temperature = config.sampling.temperature
    recompute = config.old_logprobs == "trainer"
    reference = roles.reference_logprobs(samples, temperature)
    policy = roles.policy_logprobs(samples, temperature) if recompute else None
    values = roles.values(samples) if config.defaults.needs_value else None
    scores = roles.scores(samples)
    scored = _Scored(
        logprobs=[sample.logprobs for sample in samples] if policy is None else policy.result(),
        reference=reference.result(),
        values=None if values is None else values.result(),
        scores=scores.result(),
    )
    _check_scored(scored, samples)
    return scored


def _check_scored(scored: _Scored, samples: Sequence[Generation]) -> None:
    """A number for every token and a score for every sample, all finite: one NaN would poison the whole batch."""
    sampler = [sample.logprobs for sample in samples]
    answers = [("rollout", sampler, 0), ("policy", scored.logprobs, 0), ("reference", scored.reference, 0)]
    if scored.values is not None:
        answers.append(("value", scored.values, 1))
    for role, rows, more in answers:
        if [len(row) for row in rows] != [len(sample.response_ids) + more for sample in samples]:
            raise CaiError(f"{role}: its numbers do not match the response tokens of the samples")
        for number, row in enumerate(rows):
            if not all(map(math.isfinite, row)):
                raise CaiError(f"{role}: a number of sample {number} is not finite")
    if len(scored.scores) != len(samples):
        raise CaiError(f"reward: {len(scored.scores)} scores for {len(samples)} samples")
    for number, score in enumerate(scored.scores):
        if not math.isfinite(score):
            raise CaiError(f"reward: the score of sample {number} is not finite")


def _trajectories(
    asked: Sequence[TokenizedPrompt],
    samples: Sequence[Generation],
    scored: _Scored,
    shaped: Shaped,
    ratios: Importance,
    config: PpoConfig,
) -> tuple[Trajectory, ...]:
    """Cut the padded rows back to each response's length."""

    def row(tensor: Tensor | None, number: int) -> tuple[float, ...]:
        return () if tensor is None else tuple(tensor[number, : len(samples[number].response_ids)].tolist())

    def weights(of_sample: Sequence[float]) -> tuple[float, ...]:
        return tuple(aggregation_weight(len(of_sample), config) * weight for weight in of_sample)

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


def _mismatch(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Distance of the sampler's log-probabilities from the trainer's, nats."""
    differences = [
        abs(ours - theirs)
        for item in trajectories
        for ours, theirs in zip(item.old_logprobs, item.sampler_logprobs, strict=True)
    ]
    return {"mismatch_mean": fmean(differences), "mismatch_max": max(differences)}
