"""Stage 5: reinforcement learning, with PPO's loop and one of several algorithms.

`auto` is resolved by properties: what an algorithm means by it stands in `cai_dist.config.algorithms`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cai_dist.config.algorithms import (
    SYNONYMS,
    Aggregation,
    AlgorithmDefaults,
    AlgorithmName,
    KlEstimator,
    KlWhere,
    defaults_of,
)
from cai_dist.config.base import Section, StrategyPath
from cai_dist.config.environment import EnvironmentConfig
from cai_dist.config.placement import PlacementConfig, RoleShards
from cai_dist.config.rewards import MODEL, RewardTerm
from cai_dist.config.training import LoraConfig, OptimizerConfig, SamplingConfig, ScoringConfig, ShardingConfig
from cai_dist.registry import is_path


class KlConfig(Section):
    """KL penalty against the reference (the SL-CAI model)."""

    coefficient: float = Field(0.05, ge=0)
    """beta of r = score - beta * (logprob - ref_logprob), or of the penalty in the loss; the paper's 0.001 collapses
    tiny models."""
    target: float | None = Field(None, gt=0)
    """nats per response: an adaptive controller steers beta towards it; default: beta is fixed."""
    horizon: int = Field(10_000, ge=1)
    """Samples over which the adaptive controller acts."""
    where: Literal["auto"] | KlWhere = "auto"
    """Part of each token's `reward`, or a term of the policy's `loss`."""
    estimator: Literal["auto"] | KlEstimator = "auto"
    """Of the KL from a sampled token; with x = logprob - ref_logprob, k1 = x, k2 = x² / 2, k3 = exp(-x) - 1 + x. As a
    reward only k1 has the KL's gradient, in the loss only k2."""


ScheduleName = Literal["sync", "one_step_off", "partial"]
TransferBackend = Literal["object_store", "broadcast", "shared_memory", "cuda_ipc"]


class PpoConfig(Section):
    """Stage 5: PPO on Ray (as in 2204.05862), or another algorithm in its place."""

    algorithm: AlgorithmName | StrategyPath = "ppo"
    """Where advantages come from: `ppo` (GAE over a value model; `gae` is a synonym); the others need no value
    model; `package.module:object`: an algorithm of one's own (docs/extending.md)."""
    iterations: int = Field(20, ge=1)
    prompts_per_iteration: int = Field(64, ge=1)
    samples_per_prompt: int = Field(1, ge=1)
    helpful_fraction: float = Field(0.5, ge=0, le=1)
    """Share of helpful prompts among the prompts of an iteration."""
    epochs: int = Field(2, ge=1)
    """Passes over each iteration's samples."""
    mini_batch: int = Field(64, ge=1)
    """Samples per optimiser step over all ranks."""
    policy: ShardingConfig = ShardingConfig()
    value: ShardingConfig = ShardingConfig()
    reference: ScoringConfig | None = None
    """The reference spread over several processes, for a model that one cannot hold; default: whole in each of
    `placement.reference.workers`."""
    reward: ScoringConfig | None = None
    """The preference model spread over several processes; default: whole in each of `placement.reward.workers`."""
    policy_optimizer: OptimizerConfig = OptimizerConfig()
    value_optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig | None = None
    """Train low-rank adapters of policy and value instead of all weights; the policy without its adapter then is the
    reference, and no reference workers are started. Default: all weights."""
    kl: KlConfig = KlConfig()
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    whiten_advantages: Literal["auto"] | bool = "auto"
    aggregate: Literal["auto"] | Aggregation = "auto"
    """What the policy's loss is a mean over: every response `token`, every `sequence` (each the mean of its tokens), or
    a `constant` number of tokens (`max_new_tokens` a sequence)."""
    clip: float = Field(0.2, gt=0, lt=1)
    clip_high: float | None = Field(None, gt=0)
    """Upper half width of the trust interval; default: `clip` on both sides."""
    dual_clip: float | None = Field(None, gt=1)
    """Bounds the loss of a token with a negative advantage at this many times the advantage; default: no bound."""
    entropy_bonus: float = Field(0.0, ge=0)
    """Weight of the policy's entropy, nats per token, in its loss."""
    target_kl: float | None = Field(None, gt=0)
    """nats per token: once a step has found the policy further than this from the one that sampled, it takes no more
    steps in that iteration; default: it takes all."""
    importance_cap: float | None = Field(None, gt=0)
    """Tokens are weighted by min(p_trainer / p_sampler, this); default: no weights with `schedule: sync`, 2 with the
    others, whose samples are of older weights."""
    mismatch_alarm: float | None = Field(None, gt=0)
    """nats: warn where sampler and trainer, with the same weights, differ by more than this in the mean absolute
    log-probability of a token; default: 0.01 in fp32, 0.2 in bf16."""
    value_clip: float = Field(0.2, gt=0)
    value_init: Literal["preference", "sl"] = "preference"
    """Trunk of the value model."""
    value_warmup: int = Field(0, ge=0)
    """First iterations that train the value model alone."""
    bootstrap_truncated: bool = False
    """A response cut off at the token limit is followed by the value model's estimate of what would have come; default:
    it is over, like a finished one."""
    rewards: tuple[RewardTerm, ...] = (RewardTerm(),)
    """What the score of a response is the weighted sum of, such as [{use: preference_model, weight: 1}, {use:
    mypkg.rewards:length_penalty, weight: 0.1, args: {per_token: 0.01}}]; default: the preference model alone."""
    environment: EnvironmentConfig | None = None
    """Who goes on talking to the model after its answer, such as {use: asks_again}; what is scored is the last answer
    after all that was said before. Default: nobody, a sample is one answer."""
    score_length: Literal["raw", "residual"] = "raw"
    """`residual`: the least-squares slope of score on response length is taken out, over each iteration."""
    score_normalization: Literal["none", "running", "batch"] = "none"
    """Subtract the mean and divide by the deviation: of the whole run so far, or of each iteration."""
    score_clip: float | None = Field(None, gt=0)
    """Clip scores to +- this; default: no clip."""
    missing_eos_penalty: float = Field(0.0, ge=0)
    """Taken off the score of a response that was cut off at the token limit."""
    schedule: ScheduleName | StrategyPath = "sync"
    """`sync`: generate, score, update, transfer, one after the other. `one_step_off`: the next samples are generated,
    with the weights of one update ago, while the update goes on. `partial`: a response that is not finished after
    `pause_after` tokens waits for the next iteration and goes on with its weights. `package.module:object`: a schedule
    of one's own."""
    pause_after: int | None = Field(None, ge=1)
    """With `schedule: partial`: new tokens of one response in one round of generation, of which an iteration has as
    few as it takes; divides `sampling.max_new_tokens`."""
    stream: bool = True
    """Reference, reward, value and policy score the first samples while others are still generated: with `schedule:
    sync`, where rollout shares GPUs with no other role. With `schedule: one_step_off` reference and reward score the
    next samples while policy and value learn, where they share GPUs with no other role."""
    rollout_batch: int | None = Field(None, ge=1)
    """Prompts of one request to a rollout worker; requests are dealt out over the workers in turn. Default: a worker's
    whole share at once, so that an engine has a prompt for every place that a finished response leaves; where samples
    are streamed no more than a quarter of a share or twice `engine.max_rows`, whichever is more."""
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    """Where the ratio's denominator comes from: recomputed by the policy ranks, or as the sampler gave it."""
    sampling: SamplingConfig = SamplingConfig()
    transfer: TransferBackend | StrategyPath = "object_store"
    """How weights reach the rollout workers: through Ray's shared memory (`object_store`), from the policy ranks by
    `broadcast` in a process group of their own (NCCL on GPUs, gloo on CPUs), or (`shared_memory`, the fastest where all
    of both are on one node) through segments of /dev/shm that are kept from one transfer to the next; `cuda_ipc`: from
    process to process on the GPU that policy and rollout share. `package.module:object`: a way of one's own."""
    transfer_bucket_mb: float = Field(64.0, gt=0)
    transfer_tolerance: float | None = Field(None, gt=0)
    """Nats a token that an engine may differ from the trainer by right after a transfer, before it is refused; default:
    0.001 in fp32, 0.2 in bf16."""
    checkpoint_every: int = Field(5, ge=1)
    """Iterations between checkpoints."""
    snapshot_every: int | None = Field(None, ge=1)
    """Keep the policy as a model of its own after every so many iterations (`ppo/snapshots/`; the last one is
    `ppo/model` itself), for the evaluation's frontier; default: none. Set it before PPO runs: what the policy was on
    its way is not there afterwards, so that a change trains PPO again (the earlier result is kept aside)."""
    placement: RoleShards = RoleShards()

    @property
    def defaults(self) -> AlgorithmDefaults:
        """What the algorithm needs, and its meaning of `auto`."""
        return defaults_of(self.algorithm)

    @property
    def algorithm_mark(self) -> str:
        """The algorithm as fingerprints and checkpoints name it: `ppo` by the name that it had in the first ones."""
        return "gae" if self.algorithm == "ppo" else self.algorithm

    def snapshot_due(self, iteration: int) -> bool:
        """Whether the policy is kept after `iteration` iterations."""
        every = self.snapshot_every
        return every is not None and iteration % every == 0 and iteration < self.iterations

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles with a model of the run that are started."""
        value = ("value",) if self.defaults.needs_value else ()
        reference = ("reference",) if self.lora is None else ()
        reward = ("reward",) if self.rewards_model else ()
        return ("policy", *value, *reference, *reward, "rollout")

    @property
    def rewards_model(self) -> bool:
        """Whether the preference model is a term of the score."""
        return any(term.use == MODEL for term in self.rewards)

    @property
    def tells_prompts(self) -> bool:
        """Whether somebody is told the prompts in words: a reward term of one's own or an environment."""
        return self.environment is not None or any(term.own for term in self.rewards)

    @property
    def longest_response(self) -> int:
        """Tokens that the model samples in one conversation, at most."""
        answers = self.environment.answers if self.environment else 1
        return answers * self.sampling.max_new_tokens

    @property
    def plain_rewards(self) -> bool:
        """Whether the score is the preference model's alone, as it is."""
        return len(self.rewards) == 1 and self.rewards_model and self.rewards[0].weight == 1.0

    @property
    def trained_roles(self) -> tuple[str, ...]:
        """The roles with an optimiser."""
        return tuple(role for role in self.roles if role in ("policy", "value"))

    def workers_of(self, role: str) -> int:
        """Worker processes of a role: the ranks of its engine where it is trained or sharded, else what its
        placement says, with the default of `PlacementConfig.workers`."""
        if role in self.trained_roles or self.scoring(role) is not None:
            return int(getattr(self, role).ranks)
        place: PlacementConfig = getattr(self.placement, role)
        if place.workers is not None:
            return place.workers
        beside = [other for group in self.shared_groups if role in group for other in group] if place.gpus else []
        return max((int(getattr(self, other).ranks) for other in beside if other in self.trained_roles), default=1)

    def scoring(self, role: str) -> ShardingConfig | None:
        """How a role that only scores is spread over processes, in passes as large as the policy's; None: it is whole
        in each of them."""
        found: ScoringConfig | None = getattr(self, role) if role in ("reference", "reward") else None
        return None if found is None else found.sharding(self.policy.micro_batch)

    def passes_of(self, role: str) -> ShardingConfig:
        """What bounds the micro-batches of a role: of one that only scores what bounds the policy's, over its own
        workers, each of which computes whole sequences."""
        if role in self.trained_roles:
            found: ShardingConfig = getattr(self, role)
            return found
        return self.policy.model_copy(update={"ranks": self.workers_of(role), "sequence_parallel": 1})

    @property
    def rollout_alone(self) -> bool:
        """Whether the rollout workers share their GPUs with no other role."""
        return not any("rollout" in group for group in self.shared_groups)

    @property
    def shared_groups(self) -> tuple[tuple[str, ...], ...]:
        """The groups of two or more roles that share GPUs."""
        whole = {"separate": (), "colocated": (self.roles,), "hybrid": self.placement.share}[self.placement.mode]
        present = (tuple(role for role in group if role in self.roles) for group in whole)
        return tuple(group for group in present if len(group) > 1)

    @property
    def updates_take_turns(self) -> bool:
        """Whether policy and value model learn one after the other: on one GPU the collectives of two groups of ranks
        would wait for each other."""
        together = any({"policy", "value"} <= set(group) for group in self.shared_groups)
        return together and self.placement.policy.gpus > 0

    def rollout_request(self, prompts: int, workers: int, rows: int) -> int:
        """Prompts of one request: `rollout_batch` with its default, where `prompts` are dealt out over `workers` whose
        engines decode `rows` sequences at a time."""
        if self.rollout_batch is not None:
            return self.rollout_batch
        share = max(1, -(-prompts // workers))
        return min(share, max(2 * rows, -(-share // 4))) if self.streams or self.looks_ahead else share

    @property
    def streams(self) -> bool:
        """`stream` where it can be: scoring roles and rollout awake at the same time, and samples of the weights that
        score them."""
        return self.stream and self.schedule == "sync" and self.rollout_alone

    @property
    def looks_ahead(self) -> bool:
        """`stream` with `one_step_off`: the roles that do not learn score the next iteration's samples while the others
        learn from this one's. Where they share GPUs with nobody, and the reference is not the policy without its
        adapter."""
        shared = {role for group in self.shared_groups for role in group}
        alone = self.lora is None and not shared & {"reference", "reward"}
        return self.stream and self.schedule == "one_step_off" and alone

    @property
    def importance_bound(self) -> float | None:
        """`importance_cap` with its default: samples of older weights are always weighted."""
        if self.importance_cap is None and self.schedule != "sync":
            return 2.0
        return self.importance_cap

    @property
    def kl_where(self) -> KlWhere:
        """`kl.where` without `auto`."""
        return self.defaults.kl_where if self.kl.where == "auto" else self.kl.where

    @property
    def kl_estimator(self) -> KlEstimator:
        """`kl.estimator` without `auto`. An algorithm's own belongs to its own place: elsewhere it would not have the
        KL's gradient, so there it is k1 for a reward and k2 for a loss."""
        if self.kl.estimator != "auto":
            return self.kl.estimator
        if self.kl_where == self.defaults.kl_where:
            return self.defaults.kl_estimator
        return "k1" if self.kl_where == "reward" else "k2"

    @property
    def aggregation(self) -> Aggregation:
        """`aggregate` without `auto`."""
        return self.defaults.aggregate if self.aggregate == "auto" else self.aggregate

    @property
    def whitens(self) -> bool:
        """`whiten_advantages` without `auto`."""
        return self.defaults.whiten if self.whiten_advantages == "auto" else self.whiten_advantages

    @field_validator("algorithm", mode="before")
    @classmethod
    def _synonym(cls, value: Any) -> Any:
        return SYNONYMS.get(value, value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _group(self) -> PpoConfig:
        if is_path(self.algorithm):
            return self  # what it needs is known once it is imported: `config.checks.ppo`
        if self.defaults.needs_group and self.samples_per_prompt < 2:
            raise ValueError(
                f"samples_per_prompt={self.samples_per_prompt}: must be at least 2 for algorithm={self.algorithm}, "
                "whose baseline is the other samples of the same prompt"
            )
        return self

    @model_validator(mode="after")
    def _divisible(self) -> PpoConfig:
        samples = self.prompts_per_iteration * self.samples_per_prompt
        if samples % self.mini_batch:
            raise ValueError(
                f"mini_batch={self.mini_batch}: must divide prompts_per_iteration x samples_per_prompt = "
                f"{self.prompts_per_iteration} x {self.samples_per_prompt} = {samples}"
            )
        return self
