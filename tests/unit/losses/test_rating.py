"""Least squares on ratings."""

from __future__ import annotations

import pytest
import torch

from cai_dist.losses.rating import rating_loss


def test_by_hand() -> None:
    loss, metrics = rating_loss(torch.tensor([1.0, 4.0]), torch.tensor([3.0, 3.0]), 2.0)
    assert loss.item() == pytest.approx((4 + 1) / 2)
    assert metrics["absolute_error"].item() == pytest.approx(1.5) and metrics["rating"].item() == pytest.approx(2.5)


def test_the_gradient_is_twice_the_error_over_all_answers() -> None:
    scores = torch.tensor([1.0, 4.0], requires_grad=True)
    rating_loss(scores, torch.tensor([3.0, 3.0]), 8.0)[0].backward()
    assert scores.grad is not None and scores.grad.tolist() == pytest.approx([2 * -2 / 8, 2 * 1 / 8])


def test_splitting_a_batch_changes_nothing_and_a_stand_in_counts_for_nothing() -> None:
    scores, ratings = torch.randn(6), torch.rand(6) * 4
    whole = rating_loss(scores, ratings, 6.0)[0]
    parts = sum(rating_loss(scores[i : i + 2], ratings[i : i + 2], 6.0)[0] for i in (0, 2, 4))
    assert torch.as_tensor(parts).item() == pytest.approx(whole.item(), rel=1e-6)
    empty = rating_loss(torch.tensor([float("nan")]), torch.tensor([0.0]), 6.0, torch.tensor([False]))
    assert empty[0].item() == 0.0 and all(value.item() == 0.0 for value in empty[1].values())


def test_a_silent_broadcast_is_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        rating_loss(torch.zeros(2), torch.zeros(2, 1), 2.0)
