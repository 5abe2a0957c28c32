"""PPO in plain torch: one process, one sample at a time, no padding, nothing of cai_dist. It is told which tokens were
sampled and which samples make up each mini-batch; all else it works out itself, in float64."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.unit.correctness.references import quadratic_gae, rewards_of, whitened

Sample = tuple[tuple[int, ...], tuple[int, ...], list[int]]
"""Token ids of prompt and response, and the places in the response of the tokens that the model sampled."""


@dataclass(frozen=True)
class Settings:
    """What the run under test was told, in plain numbers."""

    end_id: int
    temperature: float
    gamma: float
    lam: float
    clip: float
    value_clip: float
    policy_lr: float
    value_lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    grad_clip: float
    kl_coefficient: float
    kl_target: float
    kl_horizon: int


@dataclass(frozen=True)
class Scored:
    """One sample as the update sees it; lists over the model's tokens."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    ours: list[int]
    old: list[float]
    values: list[float]
    advantages: list[float]
    returns: list[float]


class PlainPpo:
    def __init__(self, policy: str, reference: str, reward: str, value: str, settings: Settings) -> None:
        self.policy = AutoModelForCausalLM.from_pretrained(policy).double().eval()
        self.reference = AutoModelForCausalLM.from_pretrained(reference).double().eval()
        self.reward = AutoModelForSequenceClassification.from_pretrained(reward, num_labels=1).double().eval()
        self.value = AutoModelForSequenceClassification.from_pretrained(value, num_labels=1).double().eval()
        self.settings = s = settings
        self.coefficient = s.kl_coefficient
        adam = {"betas": s.betas, "eps": s.eps}
        self._optimizers = {
            "policy": (self.policy, torch.optim.AdamW(self._decaying(self.policy), lr=s.policy_lr, **adam)),
            "value": (self.value, torch.optim.AdamW(self._decaying(self.value), lr=s.value_lr, **adam)),
        }
        self.history: list[dict[str, float]] = []
        """Per iteration, means over its steps: loss and norm of the gradient before clipping."""

    def _decaying(self, net: nn.Module) -> list[dict[str, Any]]:
        """A Llama's matrices decay, its norms (it has no biases) do not."""
        matrices = [p for p in net.parameters() if p.dim() > 1]
        norms = [p for p in net.parameters() if p.dim() == 1]
        return [
            {"params": matrices, "weight_decay": self.settings.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ]

    def iteration(self, samples: Sequence[Sample], mini_batches: Sequence[Sequence[int]]) -> None:
        """Score the samples, then one step of each model for each mini-batch of sample numbers."""
        scored, kl = self._score(samples)
        seen: dict[str, list[float]] = defaultdict(list)
        for numbers in mini_batches:
            batch = [scored[n] for n in numbers]
            tokens = sum(len(item.ours) for item in batch)
            losses = {"policy": self._policy_loss(batch) / tokens, "value": self._value_loss(batch) / tokens}
            for role, (net, optimizer) in self._optimizers.items():
                optimizer.zero_grad()
                losses[role].backward()
                norm = nn.utils.clip_grad_norm_(net.parameters(), self.settings.grad_clip)
                optimizer.step()
                seen[f"{role}_loss"].append(losses[role].item())
                seen[f"{role}_grad_norm"].append(norm.item())
        self.history.append({name: fmean(numbers) for name, numbers in seen.items()})
        error = max(-0.2, min(0.2, kl / self.settings.kl_target - 1))
        self.coefficient *= 1 + error * len(samples) / self.settings.kl_horizon

    # ---- the rollout phase, after sampling

    @torch.no_grad()
    def _score(self, samples: Sequence[Sample]) -> tuple[list[Scored], float]:
        """The samples with their whitened advantages, and the mean KL of a response."""
        scored, kls = [], []
        for prompt, response, ours in samples:
            old = self._logprobs(self.policy, prompt, response)[ours].tolist()
            reference = self._logprobs(self.reference, prompt, response)[ours].tolist()
            values = self._values(prompt, response)[ours].tolist()
            kl = [mine - theirs for mine, theirs in zip(old, reference, strict=True)]
            rewards = rewards_of(kl, self._score_of(prompt, response), self.coefficient)
            advantages = quadratic_gae(rewards, values, 0.0, self.settings.gamma, self.settings.lam)
            returns = [a + v for a, v in zip(advantages, values, strict=True)]
            scored.append(Scored(prompt, response, ours, old, values, advantages, returns))
            kls.append(sum(kl))
        even = whitened([item.advantages for item in scored])
        return [replace(item, advantages=row) for item, row in zip(scored, even, strict=True)], fmean(kls)

    def _score_of(self, prompt: tuple[int, ...], response: tuple[int, ...]) -> float:
        closed = response if response[-1] == self.settings.end_id else (*response, self.settings.end_id)
        hidden = self.reward.model(input_ids=torch.tensor([prompt + closed])).last_hidden_state
        return float(self.reward.score(hidden)[0, -1, 0])

    # ---- the models

    def _logprobs(self, net: nn.Module, prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
        """log p of each response token at the sampler's temperature."""
        logits = net(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits / self.settings.temperature, dim=-1)
        return logprobs[torch.arange(len(response)), torch.tensor(response)]

    def _values(self, prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
        """V before each response token: the head on the token before it."""
        hidden = self.value.model(input_ids=torch.tensor([prompt + response])).last_hidden_state
        return self.value.score(hidden)[0, len(prompt) - 1 : -1, 0]

    # ---- losses, summed over the tokens of a mini-batch

    def _policy_loss(self, batch: Sequence[Scored]) -> Tensor:
        total, clip = torch.zeros((), dtype=torch.float64), self.settings.clip
        for item in batch:
            ratio = torch.exp(
                self._logprobs(self.policy, item.prompt, item.response)[item.ours]
                - torch.tensor(item.old, dtype=torch.float64)
            )
            advantage = torch.tensor(item.advantages, dtype=torch.float64)
            total = total - torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).sum()
        return total

    def _value_loss(self, batch: Sequence[Scored]) -> Tensor:
        total, clip = torch.zeros((), dtype=torch.float64), self.settings.value_clip
        for item in batch:
            values = self._values(item.prompt, item.response)[item.ours]
            old = torch.tensor(item.values, dtype=torch.float64)
            targets = torch.tensor(item.returns, dtype=torch.float64)
            near = old + (values - old).clamp(-clip, clip)
            total = total + 0.5 * torch.max((values - targets) ** 2, (near - targets) ** 2).sum()
        return total
