"""What every algorithm is given and gives back.

Tensors are float64, one row a sample, its response tokens padded on the right: B samples, N tokens. The samples of one
prompt lie side by side, `samples_per_prompt` of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from cai_dist.config.ppo import PpoConfig


@dataclass(frozen=True)
class Experience:
    """Some of the samples of one iteration, those of a prompt all together: no algorithm may look at others."""

    mask: Tensor
    """bool [B, N], true for response tokens; no row is empty."""
    scores: Tensor
    """[B] shaped scores."""
    penalties: Tensor
    """[B, N] what each token costs: beta x KL where the KL is part of the reward, else 0; 0 outside the mask."""
    values: Tensor | None
    """[B, N] V of the state before each token; None without a value model."""
    bootstrap: Tensor | None
    """[B] V of the state after the last token, 0 where the episode ends there; None without a value model."""

    @cached_property
    def rewards(self) -> Tensor:
        """[B, N] reward of every token: minus its penalty, and on the last one the score besides (as in
        2204.05862)."""
        rewards = -self.penalties
        last = self.mask.sum(dim=1) - 1
        rewards[torch.arange(len(self.scores)), last] += self.scores
        return rewards

    @property
    def totals(self) -> Tensor:
        """[B] reward of each whole response."""
        return self.rewards.sum(dim=1)

    def on_tokens(self, numbers: Tensor) -> Tensor:
        """[B] -> [B, N]: each sample's number on all of its tokens."""
        return torch.where(self.mask, numbers.unsqueeze(1), 0.0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Before whitening; [B, N] each, 0 outside the mask."""

    advantages: Tensor
    returns: Tensor | None = None
    """Targets of the value model; None without one."""


class Algorithm(Protocol):
    """A function; which settings it reads is its own business, what it needs stands in `config.algorithms`."""

    def __call__(self, batch: Experience, config: PpoConfig) -> Estimate: ...
