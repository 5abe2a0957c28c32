"""What is run on both devices: every method of a worker that computes, as a function of nothing once it is prepared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cai_dist.config.engine import EngineConfig
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.training import Dtype, LoraConfig
from cai_dist.experience.moments import Whitening
from cai_dist.losses.policy import PolicyObjective
from cai_dist.types import GenerateRequest, LabelRequest, RankInfo, SamplingParams
from cai_dist.workers.dpo import DpoWorker
from cai_dist.workers.language import LanguageWorker
from cai_dist.workers.policy import PolicyWorker
from cai_dist.workers.preference import PreferenceWorker, PretrainingWorker
from cai_dist.workers.rating import RatingWorker
from cai_dist.workers.reference import ReferenceWorker
from cai_dist.workers.reward import RewardWorker
from cai_dist.workers.rollout import RolloutWorker
from cai_dist.workers.value import ValueWorker
from tests.dry_gpu.inputs import (
    DPO,
    PAIRS,
    PROMPTS,
    RATED,
    SAMPLES,
    SCORED,
    SEQUENCES,
    TRAJECTORIES,
    shard,
)
from tests.inprocess import build_worker
from tests.tiny import END

Run = Callable[[], Any]
TEMPERATURE = 2.0
CLIP = 2.0
"""Of losses, so wide that bf16's rounding takes no token over it: its gradient would come or go."""
NEW_TOKENS = 16


@dataclass(frozen=True)
class Place:
    """Where the models are and in which precision they are loaded."""

    folder: Path
    dtype: Dtype

    @property
    def causal(self) -> str:
        return str(self.folder / "causal")

    @property
    def scalar(self) -> str:
        return str(self.folder / "scalar")

    def trained(self, kind: Any, model: str, **settings: Any) -> Any:
        """A worker that trains."""
        return build_worker(kind, model, zero=1, dtype=self.dtype, **settings)

    def policy(self, objective: PolicyObjective | None = None, **settings: Any) -> Any:
        """A policy worker."""
        made = objective or PolicyObjective(clip=CLIP)
        return self.trained(
            PolicyWorker, self.causal, objective=made, temperature=TEMPERATURE, ppo=PpoConfig(), **settings
        )

    def rollout(self, **settings: Any) -> RolloutWorker:
        """A rollout worker with fewer rows than there are prompts."""
        return RolloutWorker(_info("rollout"), model=self.causal, dtype=self.dtype, engine=_ROWS, **settings)


_ROWS = EngineConfig(max_rows=8)


def _info(role: str) -> RankInfo:
    return RankInfo(role, 0, 1)


def _step(worker: Any, *arguments: Any) -> Run:
    """An optimiser step; the norm of every parameter's gradient belongs to its answer."""

    def run() -> Any:
        metrics = worker.train_step(*arguments)
        return metrics, worker.engine._engine.norms

    return run


def language_step(at: Place) -> Run:
    return _step(at.trained(LanguageWorker, at.causal), shard(SEQUENCES))


def rating_step(at: Place) -> Run:
    return _step(at.trained(RatingWorker, at.scalar), shard(RATED))


def preference_step(at: Place) -> Run:
    return _step(at.trained(PreferenceWorker, at.scalar, margin=0.5), shard(SCORED))


def preference_step_with_lora(at: Place) -> Run:
    return _step(at.trained(PreferenceWorker, at.scalar, lora=LoraConfig(rank=4)), shard(SCORED))


def pair_scores(at: Place) -> Run:
    return partial(at.trained(PreferenceWorker, at.scalar).pair_scores, shard(SCORED))


def pretraining_step(at: Place) -> Run:
    return _step(at.trained(PretrainingWorker, at.causal, language_weight=0.5), shard(PAIRS))


def dpo_step(at: Place) -> Run:
    return _step(at.trained(DpoWorker, at.causal, loss="dpo", beta=0.1), shard(DPO))


def pair_logprobs(at: Place) -> Run:
    return partial(at.trained(DpoWorker, at.causal, loss="dpo", beta=0.1).pair_logprobs, shard(SCORED))


def pairs_without_adapter(at: Place) -> Run:
    made = at.trained(DpoWorker, at.causal, loss="dpo", beta=0.1, lora=LoraConfig(rank=4))
    return partial(made.reference_logprobs, shard(SCORED))


def _policy_step(at: Place, objective: PolicyObjective | None = None, **settings: Any) -> Run:
    return _step(at.policy(objective, **settings), shard(TRAJECTORIES), 0.1, Whitening(0.1, 1.5))


def policy_step(at: Place) -> Run:
    return _policy_step(at)


def policy_step_with_kl_and_entropy(at: Place) -> Run:
    return _policy_step(at, PolicyObjective(clip=CLIP, dual_clip=3.0, kl="k2", entropy=0.01))


def policy_step_by_sequence(at: Place) -> Run:
    return _policy_step(at, PolicyObjective(clip=CLIP, ratio="sequence"))


def policy_step_with_lora(at: Place) -> Run:
    return _policy_step(at, lora=LoraConfig(rank=4))


def policy_step_padded(at: Place) -> Run:
    return _policy_step(at, layout="padded")


def policy_logprobs(at: Place) -> Run:
    return partial(at.policy().logprobs, shard(SAMPLES), TEMPERATURE)


def policy_logprobs_padded(at: Place) -> Run:
    return partial(at.policy(layout="padded").logprobs, shard(SAMPLES), TEMPERATURE)


def logprobs_without_adapter(at: Place) -> Run:
    return partial(at.policy(lora=LoraConfig(rank=4)).reference_logprobs, shard(SAMPLES), TEMPERATURE)


def reference_logprobs(at: Place) -> Run:
    worker = ReferenceWorker(_info("reference"), model=at.causal, dtype=at.dtype, head_dtype="fp32")
    return partial(worker.logprobs, shard(SAMPLES), TEMPERATURE)


def reward_scores(at: Place) -> Run:
    worker = RewardWorker(_info("reward"), model=at.scalar, dtype=at.dtype, end_id=END)
    return partial(worker.scores, shard(SAMPLES))


def value_step(at: Place) -> Run:
    return _step(at.trained(ValueWorker, at.scalar, value_clip=CLIP), shard(TRAJECTORIES))


def values(at: Place) -> Run:
    return partial(at.trained(ValueWorker, at.scalar, value_clip=0.2).values, shard(SAMPLES))


def _sampled(at: Place, temperature: float, top_p: float = 1.0) -> Run:
    """Samples; in bf16 rounding may turn a draw, so that there the answers are only counted."""
    request = GenerateRequest(PROMPTS, SamplingParams(NEW_TOKENS, temperature, top_p, (END, 9)), 7)
    worker = at.rollout()

    def run() -> Any:
        found = worker.sample(request)
        return found if at.dtype == "fp32" else len(found.rows)

    return run


def rollout_sampled(at: Place) -> Run:
    return _sampled(at, 1.0)


def rollout_nucleus(at: Place) -> Run:
    return _sampled(at, 1.0, 0.9)


def rollout_greedy(at: Place) -> Run:
    return _sampled(at, 0.0)


def labels(at: Place) -> Run:
    return partial(at.rollout().score_labels, LabelRequest(PROMPTS, ((5,), (6, 7), (6, 8))))


def weight_transfer(at: Place) -> Run:
    """A policy after a step sends its weights to an engine that sleeps and wakes in between; then it is asked."""
    sender, taker = at.policy(), at.rollout(require_sync=True)
    sender.train_step(shard(TRAJECTORIES), 0.0, None)

    def transferred(version: int) -> None:
        plan = sender.weight_plan(20_000, [taker.weights_held()])
        taker.begin_weights(version, plan.manifest, plan.terms)
        for bucket in plan.buckets:
            taker.accept_weights(sender.weight_part(bucket, merge=False))
        taker.finish_weights(version, sender.probe())

    def run() -> Any:
        transferred(1)
        taker.keep_on_device(())
        taker.keep_on_device(("weights",))
        transferred(2)
        return taker.score_labels(LabelRequest(PROMPTS[:2], ((5,),)))

    return run


CHECKS: dict[str, Callable[[Place], Run]] = {
    check.__name__: check
    for check in (
        language_step, rating_step, preference_step, preference_step_with_lora, pair_scores, pretraining_step,
        dpo_step, pair_logprobs, pairs_without_adapter,
        policy_step, policy_step_with_kl_and_entropy, policy_step_by_sequence, policy_step_with_lora,
        policy_step_padded, policy_logprobs, policy_logprobs_padded, logprobs_without_adapter, reference_logprobs,
        reward_scores, value_step, values, rollout_sampled, rollout_nucleus, rollout_greedy, labels, weight_transfer,
    )
}  # fmt: skip
