"""Rows 6 and 7: neither micro-batches nor ranks change loss, metrics or gradient, though rows are ragged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cai_dist.data.batches import TokenBatch, loss_weight, pair_batch, sequence_batch, trajectory_batch
from cai_dist.data.schedule import MicroBatchLimits, plan_schedule, token_count
from cai_dist.losses.language import language_loss
from cai_dist.losses.logprobs import hidden_logprobs
from cai_dist.losses.policy import PolicyObjective, policy_loss
from cai_dist.losses.preference import soft_preference_loss
from cai_dist.losses.value import value_loss
from cai_dist.types import ScoredPair, TokenSequence, Trajectory
from tests.ids import ids_of, response_of

VOCABULARY = 7
Loss = tuple[Tensor, dict[str, Tensor]]


class TinyModel(nn.Module):
    """Logits, scores and values from the running mean of a sequence: causal, no attention."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, 6, dtype=torch.float64)
        self.head = nn.Linear(6, VOCABULARY, dtype=torch.float64)
        self.scalar = nn.Linear(6, 1, dtype=torch.float64)

    def states(self, batch: TokenBatch) -> Tensor:
        parts = []
        for ids in batch.ids.split(batch.lengths.tolist()):
            steps = torch.arange(1, len(ids) + 1, dtype=torch.float64)[:, None]
            parts.append(torch.tanh(self.embed(ids).cumsum(dim=0) / steps))
        return torch.cat(parts)

    def logprobs(self, batch: TokenBatch, temperature: float) -> Tensor:
        """log p of token n from the state of n - 1."""
        before = torch.nn.functional.pad(self.states(batch)[:-1], (0, 0, 1, 0))
        found, _ = hidden_logprobs(before, self.head.weight, self.head.bias, batch.ids, temperature)
        return found.masked_fill(batch.positions == 0, 0.0)

    def values(self, batch: TokenBatch) -> Tensor:
        """V before token n comes from the state of n - 1."""
        heads = self.scalar(self.states(batch)).squeeze(-1)
        return torch.nn.functional.pad(heads[:-1], (1, 0)).masked_fill(batch.positions == 0, 0.0)


def language(model: TinyModel, items: tuple[TokenSequence, ...], denominator: float) -> Loss:
    batch, weights = sequence_batch(items)
    return language_loss(model.logprobs(batch, 1.0), weights.double(), denominator)


def preference(model: TinyModel, items: tuple[ScoredPair, ...], denominator: float) -> Loss:
    batch = pair_batch(items)
    scores = model.scalar(model.states(batch.tokens)[batch.tokens.last]).squeeze(-1)
    return soft_preference_loss(*batch.split(scores), batch.p_a.double(), denominator, batch.valid)


def policy(model: TinyModel, items: tuple[Trajectory, ...], denominator: float) -> Loss:
    batch = trajectory_batch(items)
    logprobs = model.logprobs(batch.tokens, 0.7)
    return policy_loss(
        logprobs, batch.old_logprobs.double(), batch.advantages.double(), batch.weights.double(),
        batch.tokens.response_mask, denominator, PolicyObjective(clip=0.2),
    )  # fmt: skip


def value(model: TinyModel, items: tuple[Trajectory, ...], denominator: float) -> Loss:
    batch = trajectory_batch(items)
    values, mask = model.values(batch.tokens), batch.tokens.response_mask
    return value_loss(values, batch.old_values.double(), batch.returns.double(), mask, 0.2, denominator)


def trajectories() -> list[Trajectory]:
    """Six, with 1..6 response tokens and prompts of other lengths."""
    made = []
    for n in range(1, 7):
        numbers = [0.25 * ((n + t) % 5) - 0.5 for t in range(n)]
        made.append(
            Trajectory(
                prompt_ids=tuple((n + t) % VOCABULARY for t in range(7 - n)),
                response_ids=tuple((2 * n + t) % VOCABULARY for t in range(n)),
                old_logprobs=tuple(number - 1.5 for number in numbers),
                ref_logprobs=tuple(numbers),
                values=tuple(numbers),
                rewards=tuple(numbers),
                advantages=tuple(number + 0.1 for number in numbers),
                returns=tuple(2 * number for number in numbers),
                score=1.0,
                finish="stop",
                weight_version=0,
                sampler_logprobs=tuple(numbers),
                weights=tuple(1.0 + 0.1 * t for t in range(n)),
            )
        )
    return made


def sequences() -> list[TokenSequence]:
    made = []
    for item in trajectories():
        weights = (0.0,) * len(item.prompt_ids) + (1.0,) * len(item.response_ids)
        made.append(TokenSequence(ids_of(item), weights))
    return made


def pairs() -> list[ScoredPair]:
    items = trajectories()
    return [
        ScoredPair(ids_of(a), response_of(b), 0.1 + 0.15 * n)
        for n, (a, b) in enumerate(zip(items, reversed(items), strict=True))
    ]


TOKENS = float(sum(range(1, 7)))
CASES: dict[str, tuple[Callable[..., Loss], list, float]] = {
    "language": (language, sequences(), loss_weight(sequences())),
    "preference": (preference, pairs(), 6.0),
    "policy": (policy, trajectories(), TOKENS),
    "value": (value, trajectories(), TOKENS),
}


def whole(name: str, ranks: int, limits: MicroBatchLimits) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics and gradients added up over every micro-batch of every rank."""
    loss_fn, items, denominator = CASES[name]
    model = TinyModel()
    totals: dict[str, float] = {}
    plan = plan_schedule([token_count(item) for item in items], ranks, limits)
    for micro_batches in plan.split(items):
        for part in micro_batches:
            loss, metrics = loss_fn(model, part, denominator)
            loss.backward()
            assert metrics["loss"].item() == loss.item() and not metrics["loss"].requires_grad
            for key, number in metrics.items():
                totals[key] = totals.get(key, 0.0) + number.item()
    return totals, {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("limits", [*map(MicroBatchLimits, (6, 3, 2, 1)), *(MicroBatchLimits(1, t) for t in (14, 25))])
@pytest.mark.parametrize("name", list(CASES))
def test_splits_change_nothing(name: str, limits: MicroBatchLimits, ranks: int) -> None:
    """Micro-batches by count and by tokens, some of them empty."""
    metrics, gradients = whole(name, ranks, limits)
    expected_metrics, expected_gradients = whole(name, 1, MicroBatchLimits(6))
    assert metrics == pytest.approx(expected_metrics, rel=1e-12, abs=1e-14)
    assert gradients.keys() == expected_gradients.keys() and gradients
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[key], rtol=1e-10, atol=1e-14)


def test_the_denominator_is_the_true_token_count() -> None:
    # A prompt token more changes nothing in it, and the weight at position 0 predicts nothing.
    assert loss_weight([TokenSequence((1, 2, 3), (1.0, 0.0, 1.0)), TokenSequence((1, 2), (0.0, 0.5))]) == 1.5


@pytest.mark.parametrize("name", ["policy", "value"])
def test_the_model_moves(name: str) -> None:
    """Row 8: a detached graph would train nothing."""
    _, gradients = whole(name, 1, MicroBatchLimits(6))
    for key in ("embed.weight", "head.weight" if name == "policy" else "scalar.weight"):
        assert gradients[key].abs().max() > 1e-3
