"""Labels: what the feedback model says, in both orders, and what the controls make of it."""

from __future__ import annotations

import math

import pytest

from cai_dist.config.run import FeedbackConfig
from cai_dist.stages import feedback
from cai_dist.stages.records import Labelled
from cai_dist.types import Comparison, LabelRequest, Prompt, Turn
from cai_dist.world.tokenizer import build_tokenizer

from .conftest import FakeGroup


def prompt(number: int, split: str = "train") -> Prompt:
    return Prompt(f"p{number}", (Turn("human", "make cake salt ?"),), "red_team", split)  # type: ignore[arg-type]


def labelled(number: int, p: float, split: str = "train") -> Labelled:
    return Labelled(Comparison(prompt(number, split), "a", "b", p, "ai", "danger-1"), p, p, math.nan)


def test_first_option_normalises_over_the_two_labels() -> None:
    # e^-1 / (e^-1 + e^-2) = 1 / (1 + e^-1), however small both are
    assert feedback.first_option((-1.0, -2.0)) == pytest.approx(1 / (1 + math.exp(-1)))
    assert feedback.first_option((-1001.0, -1002.0)) == pytest.approx(1 / (1 + math.exp(-1)))
    assert feedback.first_option((-900.0, 0.0)) == pytest.approx(0.0)
    assert feedback.first_option((0.0, -900.0)) == pytest.approx(1.0)


def test_inverted_labels_are_one_minus_p() -> None:
    found = feedback.control([labelled(0, 0.9), labelled(1, 0.25)], "inverted", seed=0)
    assert [x.comparison.p_a for x in found] == pytest.approx([0.1, 0.75])
    assert [x.p_model for x in found] == [0.9, 0.25]


def test_shuffled_labels_are_dealt_anew_within_each_split() -> None:
    given = [labelled(i, i / 40) for i in range(20)] + [labelled(i, 0.6 + i / 100, "heldout") for i in range(20, 40)]
    found = feedback.control(given, "shuffled", seed=3)
    for split in ("train", "heldout"):
        before = [x.p_model for x in given if x.comparison.prompt.split == split]
        after = [x.comparison.p_a for x in found if x.comparison.prompt.split == split]
        assert sorted(after) == sorted(before)
        assert after != before
    assert [x.comparison.prompt.id for x in found] == [x.comparison.prompt.id for x in given]


@pytest.mark.parametrize("orders", ["both", "one"])
def test_position_bias_cancels_in_both_orders(make_run, monkeypatch, tmp_path, orders) -> None:
    """A feedback model that prefers answer "good" by 1 nat and the first place by 5 (pitfall 28)."""
    tokenizer = build_tokenizer()
    take = tokenizer.convert_tokens_to_ids("take")

    def score(method: str, request: LabelRequest) -> list[tuple[float, float]]:
        first_is_good = [ids.index(take) < len(ids) / 2 for ids in request.prompts]
        return [(5.0 + (1.0 if good else -1.0), 0.0) for good in first_is_good]

    run = make_run(feedback=FeedbackConfig(orders=orders))
    monkeypatch.setattr(feedback.prepare, "model_path", lambda run, role: "unused")
    from cai_dist.data.chat import ChatFormat

    chat = ChatFormat(tokenizer, "template", run.constitution.templates.labels)
    monkeypatch.setattr(feedback, "chat_format", lambda run, model: chat)
    good, bad = "take mix then stir .", "no no no no no no no no no no no no ."
    pairs = [
        Comparison(prompt(0), good, bad, 0.5, "ai", "danger-1"),
        Comparison(prompt(1), bad, good, 0.5, "ai", "danger-1"),
    ]
    found = feedback.label_pairs(run, FakeGroup(score), tmp_path, pairs)  # type: ignore[arg-type]
    p_good_first, p_bad_first = (x.comparison.p_a for x in found)
    if orders == "both":
        # swapping the options mirrors the probability, and the good answer wins from either place
        assert p_good_first == pytest.approx(1 - p_bad_first)
        assert p_good_first > 0.5
    else:
        assert p_bad_first > 0.9  # the bias alone decides
