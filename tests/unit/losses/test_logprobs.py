"""Rows 2 and 5 of the list of known RLHF bugs, and that chunks of the output layer change nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cai_dist.losses.logprobs import LogitScaling, hidden_logprobs

SCALINGS = [LogitScaling(), LogitScaling(scale=0.5), LogitScaling(cap=2.0), LogitScaling(scale=3.0, cap=1.5)]


def layer(n: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Random hidden states, weight, bias (all with gradients) and targets."""
    generator = torch.Generator().manual_seed(n)
    shapes = ((n, width), (vocabulary, width), (vocabulary,))
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]
    return (*tensors, torch.randint(vocabulary, (n,), generator=generator))


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, temperature: float, scaling: LogitScaling) -> Tensor:
    """The whole table of log-probabilities, written down."""
    logits = scaling.scale * (hidden @ weight.T + bias)
    if scaling.cap is not None:
        logits = scaling.cap * torch.tanh(logits / scaling.cap)
    return torch.log_softmax(logits / temperature, -1)


def test_hand_worked_values() -> None:
    # The logits are the hidden states themselves; softmax of (0, ln 3) is (1/4, 3/4).
    hidden = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    logprobs, entropy = hidden_logprobs(hidden, torch.eye(2), None, torch.tensor([1, 1]), with_entropy=True)
    torch.testing.assert_close(logprobs, torch.tensor([math.log(3 / 4), math.log(1 / 4)]))
    torch.testing.assert_close(entropy, torch.full((2,), -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))))


def test_temperature_divides_the_logits_once() -> None:
    # At T = 1/2 the logits double: (0, ln 9) -> (1/10, 9/10), in log-probability and entropy alike.
    hidden = torch.tensor([[0.0, math.log(3)]])
    logprob, entropy = hidden_logprobs(hidden, torch.eye(2), None, torch.tensor([1]), 0.5, with_entropy=True)
    assert logprob.item() == pytest.approx(math.log(0.9))
    assert entropy.item() == pytest.approx(-(0.1 * math.log(0.1) + 0.9 * math.log(0.9)))


def test_recomputed_logprobs_are_those_of_the_sampler_at_its_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 11, generator=generator)
    drawn_from = torch.softmax(logits / 0.7, dim=-1)
    ids = torch.multinomial(drawn_from, 1, generator=generator).squeeze(-1)
    found, entropy = hidden_logprobs(logits, torch.eye(11), None, ids, 0.7, with_entropy=True)
    torch.testing.assert_close(found, drawn_from.gather(-1, ids[:, None]).squeeze(-1).log())
    # E[-log p] under the same distribution is the entropy.
    torch.testing.assert_close(entropy, -(drawn_from * drawn_from.log()).sum(-1))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("max_logits", [10**6, 3 * 7, 7, 1])
def test_chunks_change_neither_results_nor_gradients(max_logits: int, scaling: LogitScaling) -> None:
    """8 tokens of 7 words in one chunk, in chunks of 3 tokens (the last is smaller) and of 1."""
    hidden, weight, bias, targets = layer(8, 5, 7)
    table = plain(hidden, weight, bias, 0.7, scaling)
    expected = table.gather(-1, targets[:, None]).squeeze(-1), -(table.exp() * table).sum(-1)
    found = hidden_logprobs(
        hidden, weight, bias, targets, 0.7, scaling=scaling, with_entropy=True, max_logits=max_logits
    )
    ramp = torch.linspace(-1, 2, 8, dtype=torch.float64)
    inputs = (hidden, weight, bias)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for pick in (lambda f: (ramp * f[0]).sum(), lambda f: (ramp * f[1]).sum(), lambda f: (ramp * f[0] * f[1]).sum()):
        mine = torch.autograd.grad(pick(found), inputs, retain_graph=True)
        for one, other in zip(mine, torch.autograd.grad(pick(expected), inputs, retain_graph=True), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_gradients_agree_with_finite_differences(scaling: LogitScaling) -> None:
    hidden, weight, bias, targets = layer(4, 3, 5)
    for max_logits in (100, 10):

        def both(h: Tensor, w: Tensor, b: Tensor, limit: int = max_logits) -> tuple[Tensor, Tensor]:
            return hidden_logprobs(h, w, b, targets, 0.7, scaling=scaling, with_entropy=True, max_logits=limit)

        assert torch.autograd.gradcheck(both, (hidden, weight, bias))


def test_a_frozen_layer_and_an_entropy_that_nobody_asked_for_cost_nothing() -> None:
    hidden, weight, bias, targets = layer(6, 4, 9)
    weight.requires_grad_(False)
    logprobs, entropy = hidden_logprobs(hidden, weight, None, targets)
    assert not entropy.any() and not entropy.requires_grad
    logprobs.sum().backward()
    expected = torch.autograd.grad(
        plain(hidden, weight, torch.zeros(9, dtype=torch.float64), 1.0, LogitScaling())
        .gather(-1, targets[:, None])
        .sum(),
        hidden,
    )[0]
    torch.testing.assert_close(hidden.grad, expected)
    assert weight.grad is None


def test_no_token_is_a_pass_with_zero_gradients() -> None:
    """An empty micro-batch: every parameter still takes part, so that no rank misses a collective call."""
    hidden, weight, bias, targets = layer(0, 4, 9)
    logprobs, _ = hidden_logprobs(hidden, weight, bias, targets)
    logprobs.sum().backward()
    assert logprobs.shape == (0,)
    for tensor in (weight, bias):
        assert tensor.grad is not None and not tensor.grad.any()


def test_half_precision_is_worked_in_float32() -> None:
    hidden, weight, bias, targets = layer(20, 8, 300, torch.bfloat16)
    logprobs, entropy = hidden_logprobs(hidden, weight, bias, targets, with_entropy=True)
    assert logprobs.dtype == entropy.dtype == torch.float32
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    expected = torch.log_softmax(logits, -1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=0)
    logprobs.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_greedy_has_no_logprobs(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        hidden_logprobs(torch.zeros(2, 3), torch.zeros(4, 3), None, torch.zeros(2, dtype=torch.long), temperature)


def test_shapes_that_do_not_fit_are_refused() -> None:
    for hidden, targets in [((2, 3), (1,)), ((2, 4), (2,)), ((1, 2, 3), (1, 2))]:
        with pytest.raises(ValueError, match="shapes"):
            hidden_logprobs(torch.zeros(hidden), torch.zeros(5, 3), None, torch.zeros(targets, dtype=torch.long))
