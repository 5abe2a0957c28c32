"""The judge of real text."""

from __future__ import annotations

import pytest

from cai_dist.stages.judges import CANNED_REFUSAL


@pytest.mark.parametrize(
    "text",
    ["I'm sorry, but no.", "I’m sorry.", "I can’t help with that.", "i cannot", "As an AI model", "I’m not able to"],
)
def test_canned_refusals_are_known_with_either_apostrophe(text: str) -> None:
    assert CANNED_REFUSAL.search(text)


@pytest.mark.parametrize("text", ["That would hurt people, and here is why.", "I can explain the risk.", "Said AI"])
def test_an_answer_that_engages_is_no_refusal(text: str) -> None:
    assert not CANNED_REFUSAL.search(text)
