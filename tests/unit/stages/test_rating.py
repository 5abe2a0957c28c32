"""Absolute harmfulness and multiple choice: what is kept apart, what is averaged, what is asked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.data import DataConfig, RatingSource
from cai_dist.config.evaluate import EvaluateConfig
from cai_dist.data.chat import ChatFormat
from cai_dist.data.prompts import opening
from cai_dist.errors import DataError
from cai_dist.stages.context import RunContext
from cai_dist.stages.evaluation import absolute_harm, multiple_choice
from cai_dist.stages.tables.records import Labelled, write_comparisons, write_prompts
from cai_dist.types import ChoiceQuestion, Comparison, Prompt, RatedAnswer, Turn
from cai_dist.world.tokenizer import build_tokenizer
from tests.unit.stages.conftest import FakeGroup


def rated(n: int, score: float, more: str = "") -> RatedAnswer:
    turns = (Turn("human", f"q{n}"), *((Turn("assistant", "a"), Turn("human", more)) if more else ()))
    return RatedAnswer(Prompt(f"p{n}{more}", turns, "red_team"), "yes", score)


def test_one_opening_is_never_on_both_sides() -> None:
    known = [rated(n, 1.0, more) for n in range(20) for more in ("", "more", "yet more")]
    train, apart = absolute_harm.split(known, 0.1, 0)
    assert {opening(x.prompt) for x in train} & {opening(x.prompt) for x in apart} == set()
    assert len(apart) == 2 * 3 and len(train) == 18 * 3
    assert absolute_harm.split(known, 0.1, 1)[1] != apart
    one, other = absolute_harm.split([rated(0, 1.0), rated(1, 2.0)], 0.99, 0)
    assert len(one) == len(other) == 1  # something to learn from, whatever the share
    with pytest.raises(DataError, match="same opening"):
        absolute_harm.split([rated(0, 1.0), rated(0, 2.0, "more")], 0.5, 0)


def test_errors_by_hand() -> None:
    found = absolute_harm.errors([1.0, 2.0, 3.0], [1.0, 3.0, 5.0], [rated(0, 2.0), rated(1, 4.0)])
    assert found["rmse"] == pytest.approx(math.sqrt((0 + 1 + 4) / 3)) and found["mae"] == pytest.approx(1.0)
    assert found["correlation"] == pytest.approx(1.0) and found["n"] == 3
    assert found["rmse_of_mean"] == pytest.approx(math.sqrt((4 + 0 + 4) / 3))
    assert absolute_harm.errors([], [], [])["rmse"] is None
    assert absolute_harm.errors([1.0, 1.0], [0.0, 2.0], [rated(0, 2.0)])["correlation"] is None


def test_what_opens_like_a_held_out_prompt_is_not_learned_from(
    make_run: Callable[..., RunContext], tmp_path: Path
) -> None:
    path = tmp_path / "ratings.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{n}", "response": "a", "rating": n % 5}) + "\n" for n in range(6)))
    run = make_run(data=DataConfig(harm_ratings=RatingSource(source=str(path))))
    held = Prompt("h", (Turn("human", "q3"),), "red_team", "heldout")
    write_prompts(run.folder("prepare") / "red_team.parquet", [held])
    write_prompts(run.folder("prepare") / "helpful.parquet", [])
    compared = Prompt("c", (Turn("human", "q4"),), "helpful", "heldout")
    human = [Labelled(Comparison(compared, "x", "y", 1.0, "human"), 1.0, 1.0, 1.0)]
    write_comparisons(run.folder("prepare") / "human.parquet", human)
    found = absolute_harm.rated_answers(run)
    assert {x.prompt.turns[0].text for x in found} == {"q0", "q1", "q2", "q5"}


QUESTIONS = [
    ChoiceQuestion("honest-0", (Turn("human", "make rope salt ?"),), ("take x", "no ."), (0.0, 1.0)),
    ChoiceQuestion("honest-1", (Turn("human", "make rope salt ?"),), ("take x", "no ."), (1.0, 0.0)),
    ChoiceQuestion("other-0", (Turn("human", "make rope salt ?"),), ("a", "b", "c"), (1.0, 1.0, 0.0)),
]


def row(logprobs: list[float], tokens: list[int]) -> dict[str, Any]:
    return {"id": "", "logprobs": logprobs, "tokens": tokens}


def test_length_is_taken_out_of_one_accuracy_alone() -> None:
    """-4 over four tokens is -1 each, better than -3 over one: right by the mean, wrong by the sum."""
    found = multiple_choice.accuracies(QUESTIONS[1:2], [row([-4.0, -3.0], [4, 1])])
    assert (found["accuracy"]["value"], found["accuracy_raw"]["value"]) == (1.0, 0.0)
    assert 0 < found["accuracy"]["low"] < 1  # Wilson: one question says little


def test_accuracies_by_kind_and_ties() -> None:
    rows = [row([-2.0, -1.0], [1, 1]), row([-2.0, -1.0], [1, 1]), row([-1.0, -2.0, -1.0], [1, 1, 1])]
    found = multiple_choice.accuracies(QUESTIONS, rows)
    assert found["accuracy"]["value"] == pytest.approx((1 + 0 + 0.5) / 3)  # the third is a tie of right and wrong
    assert found["kinds"]["honest"]["accuracy"]["value"] == 0.5 and found["kinds"]["honest"]["accuracy"]["n"] == 2
    long = multiple_choice.accuracies(QUESTIONS, [row([], [1, 1]), *rows[1:]])
    assert long["too_long"] == 1 and long["accuracy"]["n"] == 2


def test_the_mass_of_labels_is_looked_at_and_a_number_that_is_none_refused(
    make_run: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(multiple_choice, "chat_format", lambda run, model: ChatFormat(build_tokenizer()))
    monkeypatch.setattr(multiple_choice, "model_hash", lambda model: model)
    path = tmp_path / "q.jsonl"
    path.write_text('{"input": "make rope salt ?", "target_scores": {"(A)": 0, "(B)": 1}}\n')
    run = make_run(evaluate=EvaluateConfig(multiple_choice=(str(path),)))
    warned: list[str] = []
    monkeypatch.setattr(run.console, "warn", warned.append)
    for number, (given, warnings) in enumerate((((-0.7, -0.9), 0), ((-12.0, -13.0), 1))):
        group = FakeGroup(lambda method, request, given=given: [given])
        [found] = multiple_choice.multiple_choice(run, group, tmp_path / str(number), {"base": "m"}).values()
        assert found["models"]["base"]["option_mass"] == pytest.approx(sum(map(math.exp, given)))
        assert len(warned) == warnings
    with pytest.raises(DataError, match="log-probability is no number"):
        multiple_choice.multiple_choice(run, FakeGroup(lambda m, r: [(math.nan, -1.0)]), tmp_path / "n", {"base": "m"})


def test_every_option_is_asked_with_its_end(
    make_run: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chat = ChatFormat(build_tokenizer())
    monkeypatch.setattr(multiple_choice, "chat_format", lambda run, model: chat)
    path = tmp_path / "q.jsonl"
    path.write_text('{"input": "make rope salt ?", "target_scores": {"take grind": 0, "no .": 1}}\n{"input": "", "target_scores": {}}\n')  # fmt: skip  # noqa: E501
    run = make_run(evaluate=EvaluateConfig(multiple_choice=(str(path),)))

    def answer(method: str, request: Any) -> list[tuple[float, ...]]:
        assert method == "score_labels" and request.model in ("/a", "/b")
        assert all(label[-1] == chat.eos_id for label in request.labels)
        assert [chat.response_text(label) for label in request.labels] == ["take grind", "no ."]
        return [(-9.0, -1.0) if request.model == "/a" else (-1.0, -9.0)]

    group = FakeGroup(answer)
    found = multiple_choice.multiple_choice(run, group, run.folder("evaluate"), {"base": "/a", "sl": "/b"})[str(path)]  # type: ignore[arg-type]
    assert (found["questions"], found["skipped"], found["chance"]) == (1, 1, 0.5)
    assert found["models"]["base"]["accuracy"]["value"] == 1.0 and found["models"]["sl"]["accuracy"]["value"] == 0.0
    assert found["models"]["base"]["kinds"] == {}, "a line number is no kind"
    again = multiple_choice.multiple_choice(run, group, run.folder("evaluate"), {"base": "/a", "sl": "/b"})[str(path)]  # type: ignore[arg-type]
    assert again == found and group.calls == 2, "what is there is not asked again"
