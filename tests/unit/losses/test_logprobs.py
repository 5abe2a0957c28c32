"""Rows 2 and 5 of the list of known RLHF bugs: masks from lengths, one temperature everywhere."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_dist.losses.language import language_loss
from cai_dist.losses.logprobs import entropy_from_logits, response_mask, token_logprobs


def test_hand_worked_values_and_alignment() -> None:
    # Softmax of (0, ln 3) is (1/4, 3/4). Column t is about token t: logits 0 predict token 1, logits 1 token 2.
    logits = torch.tensor([[[0.0, math.log(3)], [math.log(3), 0.0], [5.0, -5.0]]])
    ids = torch.tensor([[0, 1, 1]])
    expected = torch.tensor([[0.0, math.log(3 / 4), math.log(1 / 4)]])
    torch.testing.assert_close(token_logprobs(logits, ids), expected)


def test_temperature_divides_the_logits_once() -> None:
    # At T = 1/2 the logits double: (0, ln 9) -> (1/10, 9/10).
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0]]])
    assert token_logprobs(logits, torch.tensor([[0, 1]]), 0.5)[0, 1].item() == pytest.approx(math.log(0.9))
    entropy = entropy_from_logits(logits, 0.5)
    assert entropy[0, 0].item() == 0.0
    assert entropy[0, 1].item() == pytest.approx(-(0.1 * math.log(0.1) + 0.9 * math.log(0.9)))


def test_recomputed_logprobs_are_those_of_the_sampler_at_its_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, 11, generator=generator)
    drawn_from = torch.softmax(logits / 0.7, dim=-1)
    ids = torch.multinomial(drawn_from.reshape(-1, 11), 1, generator=generator).reshape(4, 9).roll(1, dims=1)
    expected = drawn_from[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1).log()
    torch.testing.assert_close(token_logprobs(logits, ids, 0.7)[:, 1:], expected)
    # E[-log p] under the same distribution is the entropy.
    every = torch.stack([token_logprobs(logits, torch.full((4, 9), v), 0.7) for v in range(11)], dim=-1)[:, 1:]
    torch.testing.assert_close(entropy_from_logits(logits, 0.7)[:, 1:], -(every.exp() * every).sum(-1))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_greedy_has_no_logprobs(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.long), temperature)


def test_half_precision_logits_are_worked_in_float32() -> None:
    logits = torch.randn(2, 5, 300, generator=torch.Generator().manual_seed(1)).bfloat16()
    ids = torch.arange(10).reshape(2, 5)
    result = token_logprobs(logits, ids)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, token_logprobs(logits.float(), ids), rtol=0, atol=0)


def test_gradients_agree_with_finite_differences() -> None:
    logits = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    ids = torch.tensor([[0, 1, 2, 3], [4, 4, 0, 1]])
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, ids, 0.7), logits)
    assert torch.autograd.gradcheck(lambda x: entropy_from_logits(x, 0.7), logits)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        token_logprobs(torch.zeros(2, 3, 4), torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="prompt_lengths"):
        response_mask(torch.ones(2, 1), torch.ones(2), 3)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=4), st.integers(0, 3))
def test_response_mask_follows_lengths(rows: list[tuple[int, int]], spare: int) -> None:
    prompts = torch.tensor([p for p, _ in rows])
    lengths = torch.tensor([p + r for p, r in rows])
    width = int(lengths.max()) + spare
    mask = response_mask(prompts, lengths, width)
    assert mask.tolist() == [[p <= t < p + r for t in range(width)] for p, r in rows]


def test_an_end_token_equal_to_padding_is_learned() -> None:
    # ids 7 7 7: prompt, end token, padding; all the same id. Only the end token (t = 1) may pull at the logits.
    ids = torch.full((1, 3), 7)
    logits = torch.zeros(1, 3, 9, requires_grad=True)
    weights = response_mask(torch.tensor([1]), torch.tensor([2]), 3).float()
    language_loss(token_logprobs(logits, ids), weights, 1.0)[0].backward()
    assert logits.grad is not None
    assert logits.grad[0, 0, 7].item() == pytest.approx(1 / 9 - 1)  # p - 1
    assert logits.grad[0, 1:].abs().sum() == 0
