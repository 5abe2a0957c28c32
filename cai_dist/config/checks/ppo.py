"""Settings of `ppo` that are fine alone and wrong, or odd, together."""

from __future__ import annotations

from collections.abc import Iterator

from cai_dist.config.checks.placement import placement_warnings, sharing_problems
from cai_dist.config.ppo import PpoConfig


def ppo_problems(ppo: PpoConfig) -> Iterator[str]:
    """One line for each contradiction, with the way out."""
    if ppo.sampling.temperature == 0:
        yield "ppo.sampling.temperature=0: must be greater than 0; PPO needs samples that differ"
    if ppo.sampling.top_p < 1:
        yield (
            f"ppo.sampling.top_p={ppo.sampling.top_p:g}: must be 1; PPO's ratio and KL are those of the whole "
            "distribution, samples of a cut one are not drawn from it"
        )
    if ppo.value_warmup >= ppo.iterations:
        yield (
            f"ppo.value_warmup={ppo.value_warmup}: must be smaller than ppo.iterations={ppo.iterations}; "
            "the policy would never be trained"
        )
    if ppo.importance_cap is not None and ppo.old_logprobs == "sampler":
        yield (
            f"ppo.importance_cap={ppo.importance_cap:g}: needs ppo.old_logprobs=trainer; it weighs the trainer's "
            "log-probabilities against the sampler's, and with ppo.old_logprobs=sampler only those are known"
        )
    if ppo.kl.target is not None and ppo.kl.coefficient == 0:
        yield (
            f"ppo.kl.coefficient=0: must be greater than 0 with ppo.kl.target={ppo.kl.target:g}; the controller "
            "multiplies the coefficient, and 0 stays 0"
        )
    if ppo.defaults.needs_group and ppo.samples_per_prompt < 2:  # of one's own: the others are refused before
        yield (
            f"ppo.samples_per_prompt={ppo.samples_per_prompt}: must be at least 2 for algorithm={ppo.algorithm}, whose "
            "baseline is the other samples of the same prompt"
        )
    yield from _schedule_problems(ppo)
    yield from sharing_problems(ppo)
    yield from _unused(ppo)


def _schedule_problems(ppo: PpoConfig) -> Iterator[str]:
    """What the schedules need, and what only one of them looks at."""
    if ppo.schedule != "sync" and ppo.old_logprobs == "sampler":
        yield (
            f"ppo.old_logprobs=sampler: must be trainer with ppo.schedule={ppo.schedule}; its samples are of older "
            "weights, and only the trainer's log-probabilities tell how much they weigh"
        )
    if ppo.schedule == "one_step_off" and not ppo.rollout_alone:
        yield (
            f"ppo.schedule=one_step_off: cannot be with ppo.placement.mode={ppo.placement.mode}, in which rollout "
            "shares GPUs with roles that work at the same time; give rollout its own, or set ppo.schedule=sync"
        )
    if ppo.schedule == "partial":
        yield from _pause_problems(ppo)
    elif ppo.pause_after is not None:
        yield f"ppo.pause_after={ppo.pause_after}: leave it out; only ppo.schedule=partial pauses responses"


def _pause_problems(ppo: PpoConfig) -> Iterator[str]:
    longest = ppo.sampling.max_new_tokens
    if ppo.pause_after is None:
        yield (
            "ppo.schedule=partial: needs ppo.pause_after, the tokens after which a response waits for the next "
            f"iteration; a divisor of ppo.sampling.max_new_tokens={longest}"
        )
    elif ppo.pause_after >= longest or longest % ppo.pause_after:
        yield (
            f"ppo.pause_after={ppo.pause_after}: must divide ppo.sampling.max_new_tokens={longest} and be smaller; a "
            "response is a whole number of rounds"
        )


def _unused(ppo: PpoConfig) -> Iterator[str]:
    """Settings that the algorithm would not look at."""
    yield from _unused_scoring(ppo)
    if not ppo.defaults.needs_value:
        if ppo.value_warmup:
            yield (
                f"ppo.value_warmup={ppo.value_warmup}: must be 0 with ppo.algorithm={ppo.algorithm}, which has no "
                "value model to warm up"
            )
        if ppo.bootstrap_truncated:
            yield (
                f"ppo.bootstrap_truncated=true: must be false with ppo.algorithm={ppo.algorithm}, which has no "
                "value model to estimate what is missing"
            )
    if ppo.gamma < 1 and not ppo.defaults.discounts:
        yield (
            f"ppo.gamma={ppo.gamma:g}: must be 1 with ppo.algorithm={ppo.algorithm}, which gives a whole response one "
            "advantage and discounts nothing"
        )


def _unused_scoring(ppo: PpoConfig) -> Iterator[str]:
    """A sharded role that is not there, or whose processes are counted a second time."""
    for role, why in (("reference", "with ppo.lora the policy answers"), ("reward", "no ppo.rewards use the model")):
        scoring, place = getattr(ppo, role), getattr(ppo.placement, role)
        if scoring is None:
            continue
        if role not in ppo.roles:
            yield f"ppo.{role}: leave it out; there are no such workers ({why})"
        elif place.workers not in (None, scoring.ranks):
            yield (
                f"ppo.placement.{role}.workers={place.workers}: leave it out; ppo.{role}.ranks={scoring.ranks} says "
                "how many processes the model is spread over"
            )


def ppo_warnings(ppo: PpoConfig) -> Iterator[str]:
    """One line for each setting that runs and does something other than its name suggests."""
    yield from placement_warnings(ppo)
    yield from _misplaced_estimator(ppo)
    if ppo.defaults.ratio == "sequence" and ppo.clip >= 0.05:
        yield (
            f"ppo.clip={ppo.clip:g}: hardly ever clips with ppo.algorithm={ppo.algorithm}, whose ratio is a mean over "
            "a whole response; its paper has ppo.clip=0.0003 and ppo.clip_high=0.0004"
        )
    samples = ppo.prompts_per_iteration * ppo.samples_per_prompt
    if ppo.target_kl is not None and ppo.epochs * samples == ppo.mini_batch:
        yield (
            f"ppo.target_kl={ppo.target_kl:g}: stops nothing; with ppo.epochs=1 and ppo.mini_batch={ppo.mini_batch}, "
            "all samples of an iteration, there is only one step to take"
        )


def _misplaced_estimator(ppo: PpoConfig) -> Iterator[str]:
    """Estimators of the KL whose gradient, where they stand, is not the KL's."""
    where, estimator = ppo.kl_where, ppo.kl_estimator
    if ppo.kl.coefficient == 0:
        return
    if where == "loss" and estimator == "k1":
        yield "ppo.kl.estimator=k1: has an expected gradient of zero in the loss; k2 there has the KL's gradient"
    if where == "reward" and estimator != "k1":
        yield (
            f"ppo.kl.estimator={estimator}: as a reward it does not have the KL's gradient; k1 has it "
            "(or set ppo.kl.where=loss)"
        )
