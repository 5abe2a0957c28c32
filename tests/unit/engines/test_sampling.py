import math

import pytest
import torch

from cai_dist.engines.hf.sampling import BLOCK, _first_above, draw, request_uniforms, sampling_logprobs

LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))


def test_temperature_sharpens() -> None:
    # p^(1/0.5) = .25 .09 .0225 .0025, sum .365
    expected = [math.log(x / 0.365) for x in (0.25, 0.09, 0.0225, 0.0025)]
    assert sampling_logprobs(LOGITS, 0.5, 1.0)[0].tolist() == pytest.approx(expected)


def test_the_nucleus_keeps_the_token_that_crosses_top_p_and_renormalises() -> None:
    # .5 + .3 = .8 >= .7: two tokens stay, over .8.
    found = sampling_logprobs(LOGITS, 1.0, 0.7)[0].exp().tolist()
    assert found == pytest.approx([0.625, 0.375, 0.0, 0.0])
    assert sampling_logprobs(LOGITS, 1.0, 0.01)[0].exp().tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0])


def test_the_nucleus_does_not_depend_on_the_order_of_the_vocabulary() -> None:
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(sampling_logprobs(LOGITS, 1.0, 0.9)[:, order], sampling_logprobs(LOGITS[:, order], 1.0, 0.9))


def test_temperature_0_is_the_first_argmax_with_certainty() -> None:
    found = sampling_logprobs(torch.tensor([[1.0, 3.0, 3.0]]), 0.0, 1.0)[0].tolist()
    assert found == [-math.inf, 0.0, -math.inf]


def test_drawing_inverts_the_distribution_function() -> None:
    logprobs = sampling_logprobs(LOGITS, 1.0, 1.0)
    uniforms = torch.tensor([0.0, 0.499, 0.501, 0.799, 0.801, 0.949, 0.951, 0.9999999])
    assert draw(logprobs.expand(8, -1), uniforms).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_token_outside_the_nucleus_is_never_drawn() -> None:
    logprobs = sampling_logprobs(torch.tensor([[0.0, 5.0, 4.0, 0.0]]), 1.0, 0.9)
    uniforms = torch.cat(
        [torch.tensor([0.0, 1 - 2**-24]), torch.rand(1000, generator=torch.Generator().manual_seed(0))]
    )
    assert set(draw(logprobs.expand(1002, -1), uniforms).tolist()) == {1, 2}


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1000])
def test_drawing_in_blocks_is_drawing_from_the_whole(size: int) -> None:
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(size)) * 3
    logits[:, ::7] = -torch.inf
    logits[:, -1] = 0.0
    uniforms = torch.rand(2000, generator=torch.Generator().manual_seed(1))
    uniforms[0], uniforms[1] = 0.0, 1 - 2**-24
    logprobs = torch.log_softmax(logits, -1)
    whole = logprobs.exp().double().cumsum(-1)
    expected = torch.searchsorted(whole[0], uniforms.double() * whole[0, -1], right=True)
    assert torch.equal(draw(logprobs.expand(2000, -1), uniforms), expected)


def test_no_block_is_left_for_a_token_of_probability_0() -> None:
    # One possible token in each of two blocks; sums in two orders may round apart at the very end of a block.
    logprobs = torch.full((4000, 2 * BLOCK), -torch.inf)
    logprobs[:, 3], logprobs[:, BLOCK + 5] = math.log(1 / 3), math.log(2 / 3)
    uniforms = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    uniforms[:3] = torch.tensor([0.0, 1 / 3, 1 - 2**-24])
    assert set(draw(logprobs, uniforms).tolist()) == {3, BLOCK + 5}


def test_a_target_that_rounding_puts_past_the_end_draws_the_last_possible_token() -> None:
    ends = torch.tensor([[0.25, 1.0, 1.0]], dtype=torch.float64)
    found = [_first_above(ends, torch.tensor([[t]], dtype=torch.float64)).item() for t in (0.0, 0.25, 1.0, 1.0 + 1e-15)]
    assert found == [0, 1, 1, 1]


def test_draws_follow_the_distribution() -> None:
    uniforms = request_uniforms(0, 1, 40_000)[0]
    counts = torch.bincount(draw(sampling_logprobs(LOGITS, 1.0, 1.0).expand(40_000, -1), uniforms), minlength=4)
    # Standard error at p = .5 is .0025: four of them.
    assert (counts / 40_000).tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.01)


def test_the_global_generator_plays_no_part() -> None:
    torch.manual_seed(1)
    first, state = request_uniforms(7, 3, 4), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, request_uniforms(7, 3, 4))
    assert not torch.equal(first, request_uniforms(8, 3, 4))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_a_call_has_the_same_uniform_numbers_however_it_is_cut_into_requests() -> None:
    whole = request_uniforms(7, 500, 33)
    parts = [request_uniforms(7, min(size, 500 - first), 33, first) for size in (70,) for first in range(0, 500, size)]
    assert torch.equal(torch.cat(parts), whole)
    assert len({tuple(row) for row in whole.tolist()}) == 500


def test_requests_in_any_order_and_of_several_calls_have_their_own_uniform_numbers() -> None:
    whole, other = request_uniforms(7, 60, 5), request_uniforms(8, 60, 5)
    for first in (40, 10, 50, 50, 0, 20):
        assert torch.equal(request_uniforms(7, 10, 5, first), whole[first : first + 10])
        assert torch.equal(request_uniforms(8, 10, 5, first), other[first : first + 10])
    many = request_uniforms(7, 3, 50, 9000)  # more numbers to pass over than are drawn at once
    assert torch.equal(many, torch.rand(9003, 50, generator=torch.Generator().manual_seed(7))[9000:])
