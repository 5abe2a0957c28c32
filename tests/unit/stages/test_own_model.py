"""A feedback model of one's own: its answers, and a line for each way in which it gives none."""

from __future__ import annotations

from pathlib import Path

import pytest

from cai_dist.config.feedback import FeedbackConfig
from cai_dist.config.run import ClusterConfig, TimeoutsConfig
from cai_dist.errors import CaiError
from cai_dist.stages.ai_feedback.own_model import ask_own
from cai_dist.stages.ai_feedback.questions import Question, Unanswered
from cai_dist.types import Turn

SOURCE = """
import time
def good(questions, options): return [(-0.1, -2.4) if "a" in turns[-1].text else None for turns in questions]
def one_by_one(questions, options): yield from good(questions, options)
def hangs(questions, options): time.sleep(20)
def hangs_midway(questions, options):
    yield (-0.1, -2.4)
    time.sleep(20)
def few(questions, options): return []
def fails(questions, options): raise TimeoutError("its own server\\nis slow")
def positive(questions, options): return [(0.5, -1.0)] * len(questions)
"""
QUESTIONS = tuple(Question(f"q{i}", (Turn("human", text),)) for i, text in enumerate(("a", "b", "a")))


@pytest.fixture
def answers(make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "stranger.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))

    def ask(name: str, call: float = 60.0):
        feedback = FeedbackConfig(model=f"stranger:{name}", shard_size=2)
        cluster = ClusterConfig(timeouts=TimeoutsConfig(call=call))
        return ask_own(make_run(feedback=feedback, cluster=cluster), QUESTIONS)

    return ask


@pytest.mark.parametrize("name", ["good", "one_by_one"])
def test_each_question_has_its_answer(answers, name: str) -> None:
    assert answers(name) == [(-0.1, -2.4), Unanswered.NO_LABEL, (-0.1, -2.4)]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("hangs", "no answer within cluster.timeouts.call=0.2 s"),
        ("hangs_midway", "no answer within cluster.timeouts.call=0.2 s"),
        ("few", "gave 0 answers to 2 questions"),
        ("fails", "TimeoutError: its own server is slow"),
        ("positive", "question q0: (0.5, -1.0) are no log-probabilities (0 at most)"),
    ],
)
def test_what_is_no_answer_is_one_line(answers, name: str, line: str) -> None:
    with pytest.raises(CaiError) as caught:
        answers(name, 0.2 if "hangs" in name else 60.0)
    assert str(caught.value) == f"feedback.model=stranger:{name}: {line}"
