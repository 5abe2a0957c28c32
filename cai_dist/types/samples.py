"""Sampled responses, and what PPO makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cai_dist.types.text import PromptKind


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. `temperature` 0 is greedy. `stop_ids` end a response and are part of it."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()


Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Generation:
    """One sampled response, token for token as the sampler made it (never re-tokenised)."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability (nats) of each response token under the distribution that it was drawn from."""
    finish: Finish
    weight_version: int
    """Of the weights that made its last token."""
    engine: str = "hf"
    """Backend that sampled it."""
    versions: tuple[int, ...] = ()
    """Weight version of every response token, where they are not all `weight_version` (a response that was paused and
    went on after an update); empty: they are."""

    @property
    def token_versions(self) -> tuple[int, ...]:
        """`versions`, never empty."""
        return self.versions or (self.weight_version,) * len(self.response_ids)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One scored sample of PPO: what the rollout phase hands to the update phase. Lists run over response tokens."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    old_logprobs: tuple[float, ...]
    ref_logprobs: tuple[float, ...]
    values: tuple[float, ...]
    rewards: tuple[float, ...]
    """KL-shaped reward per token; the score sits on the last token alone."""
    advantages: tuple[float, ...]
    returns: tuple[float, ...]
    """Targets of the value model; `values` and `returns` are empty for an algorithm without one."""
    score: float
    """Raw preference-model score (logits)."""
    finish: Literal["stop", "length"]
    weight_version: int
    sampler_logprobs: tuple[float, ...]
    """As the sampler gave them; `old_logprobs` are the trainer's where `ppo.old_logprobs` says so."""
    weights: tuple[float, ...]
    """Weight of each token in the policy loss: that of the aggregation times the truncated importance weight."""
    prompt_id: str = ""
    prompt_kind: PromptKind = "red_team"
    versions: tuple[int, ...] = ()
    """As in `Generation`."""
