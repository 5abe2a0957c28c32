"""The rollout phase: prompts in, trajectories out.

Who waits for whom:

    choose prompts -> rollout: generate --+-> reference: logprobs --+-> rewards, GAE, whitening -> trajectories
                                          +-> policy:    logprobs --+   (on the driver, whole batch)
                                          +-> value:     values   --+
                                          +-> reward:    scores   --+

The four in the middle run at the same time. The policy's are left out where the sampler's log-probabilities are used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from cai_dist.config.run import PpoConfig
from cai_dist.coordinator.prompts import TokenizedPrompt, choose, derive_seed
from cai_dist.coordinator.protocols import PpoRoles
from cai_dist.coordinator.rewards import Shaped, shape
from cai_dist.coordinator.state import PpoState
from cai_dist.errors import CaiError, StaleEngineError
from cai_dist.types import Generation, SamplingParams, Trajectory


@dataclass(frozen=True, slots=True)
class Rollout:
    """One iteration's samples, on their way from the rollout to the update phase."""

    trajectories: tuple[Trajectory, ...]
    metrics: dict[str, float]

    @property
    def kl_per_response(self) -> float:
        """Mean KL to the reference, nats per response."""
        return self.metrics["kl_per_response"]

    @property
    def scores(self) -> list[float]:
        """Raw scores of the preference model."""
        return [trajectory.score for trajectory in self.trajectories]


@dataclass(frozen=True, slots=True)
class _Scored:
    """Answers of the scoring roles, in the order of the samples; lists run over response tokens."""

    logprobs: Sequence[Sequence[float]]
    reference: Sequence[Sequence[float]]
    values: Sequence[Sequence[float]]
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
    shaped = shape(
        scored.logprobs,
        scored.reference,
        scored.values,
        scored.scores,
        config,
        state.kl.coefficient,
    )
    trajectories = _trajectories(asked, samples, scored, shaped)
    metrics = _metrics(samples, trajectories, shaped, state)
    return Rollout(trajectories, {**metrics, "rollout_seconds": time.perf_counter() - began})


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
    values = roles.values(samples)
    scores = roles.scores(samples)
    scored = _Scored(
        logprobs=[sample.logprobs for sample in samples] if policy is None else policy.result(),
        reference=reference.result(),
        values=values.result(),
        scores=scores.result(),
    )
    _check_scored(scored, samples)
    return scored


def _check_scored(scored: _Scored, samples: Sequence[Generation]) -> None:
    """A number for every token and a score for every sample, all finite: one NaN would poison the whole batch."""
    for role, rows in (("policy", scored.logprobs), ("reference", scored.reference), ("value", scored.values)):
        if [len(row) for row in rows] != [len(sample.response_ids) for sample in samples]:
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
    asked: Sequence[TokenizedPrompt], samples: Sequence[Generation], scored: _Scored, shaped: Shaped
) -> tuple[Trajectory, ...]:
    """Cut the padded rows back to each response's length."""

    def row(tensor: Tensor, number: int) -> tuple[float, ...]:
        return tuple(tensor[number, : len(samples[number].response_ids)].tolist())

    return tuple(
        Trajectory(
            prompt_ids=sample.prompt_ids,
            response_ids=sample.response_ids,
            old_logprobs=tuple(scored.logprobs[number]),
            ref_logprobs=tuple(scored.reference[number]),
            values=tuple(scored.values[number]),
            rewards=row(shaped.rewards, number),
            advantages=row(shaped.advantages, number),
            returns=row(shaped.returns, number),
            score=scored.scores[number],
            finish=sample.finish,
            weight_version=sample.weight_version,
            prompt_id=prompt.prompt_id,
            prompt_kind=prompt.kind,
        )
        for number, (prompt, sample) in enumerate(zip(asked, samples, strict=True))
    )


def _metrics(
    samples: Sequence[Generation], trajectories: Sequence[Trajectory], shaped: Shaped, state: PpoState
) -> dict[str, float]:
    """What to watch of the samples: scores, distance from the reference, entropy, lengths, sampler against trainer."""
    tokens = sum(len(item.response_ids) for item in trajectories)
    kl = float(shaped.kl.sum())
    metrics = {
        "score": fmean(item.score for item in trajectories),
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
        scores = [item.score for item in trajectories if item.prompt_kind == kind]
        if scores:
            metrics[f"score_{kind}"] = fmean(scores)
    differences = [
        abs(ours - theirs)
        for sample, item in zip(samples, trajectories, strict=True)
        for ours, theirs in zip(item.old_logprobs, sample.logprobs, strict=True)
    ]
    return {**metrics, "mismatch_mean": fmean(differences), "mismatch_max": max(differences)}
