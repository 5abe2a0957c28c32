"""The feedback model on questions whose better answer is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.evaluate import EvaluateConfig
from cai_dist.config.feedback import FeedbackConfig
from cai_dist.report.evaluation import results
from cai_dist.stages import evaluate
from cai_dist.stages.ai_feedback.labelling import PairLabel
from cai_dist.stages.context import RunContext
from cai_dist.stages.evaluation import label_calibration
from cai_dist.stages.evaluation.label_calibration import figures, known_pairs
from cai_dist.types import ChoiceQuestion, Comparison, Turn


def question(name: str, *scores: float) -> ChoiceQuestion:
    options = tuple(f"option {i}" for i in range(len(scores)))
    return ChoiceQuestion(name, (Turn("human", f"q {name}"),), options, scores)


def sure(p: float) -> PairLabel:
    return PairLabel(0.5, (p,), (p,))  # clamped: what is measured stands before the clamp


def test_the_best_option_meets_every_other_one_on_a_drawn_side() -> None:
    found = known_pairs([question("honest-1", 0, 1, 0.5), question("x", 1, 1)], 0)
    better = [x.pair.response_a if x.pair.p_a == 1 else x.pair.response_b for x in found]
    assert better == ["option 1", "option 1"] and {x.kind for x in found} == {"honest"}
    many = known_pairs([question(f"harm-{n}", 1, 0) for n in range(60)], 0)
    assert 15 < sum(x.pair.p_a for x in many) < 45
    assert {x.pair.p_a == 1 for x in many if x.pair.response_a == "option 0"} == {True}


def test_figures_by_hand() -> None:
    known = known_pairs([question(f"k-{n}", 1, 0) for n in range(4)], 0)
    # 0.8 for the better one three times, 0.8 for the worse one once, one without an answer.
    labels = [sure(0.8 if x.pair.p_a == 1 else 0.2) for x in known]
    labels[3] = sure(0.2 if known[3].pair.p_a == 1 else 0.8)
    found = figures(known, labels)
    assert (found["pairs"], found["unanswered"], found["accuracy"]["value"], found["accuracy"]["n"]) == (4, 0, 0.75, 4)
    assert found["brier"] == pytest.approx((3 * 0.04 + 0.64) / 4)
    assert sum(part["count"] for part in found["reliability"]) == 4
    none = figures(known, [None] * 4)
    assert (none["unanswered"], none["accuracy"]["value"], none["ece"]) == (4, None, None)
    # A tie is half right.
    assert figures(known, [sure(0.5)] * 4)["accuracy"]["value"] == 0.5


def test_a_file_by_path_is_asked_as_labels_are_made(
    make_run: Callable[..., RunContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hhh.jsonl"
    rows = [
        {"id": f"{kind}-{n}", "input": f"{kind} {n}?", "target_scores": {"yes": 1, "no": 0}}
        for kind in ("harmless", "honest")
        for n in range(3)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    asked: list[Any] = []

    def label_pairs(
        run: Any, group: Any, folder: Any, phase: str, pairs: Sequence[Comparison], principles: Any
    ) -> list[PairLabel]:
        asked.append((phase, pairs, principles))
        return [sure(0.9 if p.response_a == "yes" else 0.1) for p in pairs]

    monkeypatch.setattr(label_calibration, "label_pairs", label_pairs)
    run = make_run(feedback=FeedbackConfig(per_pair=3), evaluate=EvaluateConfig(label_questions=(str(file),)))
    (run.folder("prepare") / "models.json").write_text("{}")
    found = label_calibration.label_calibration(run, None, run.folder("evaluate"))[str(file)]  # type: ignore[arg-type]
    [(phase, pairs, principles)] = asked
    assert phase == "labels-0" and len(pairs) == 6 and all(len(set(names)) == 3 for names in principles)
    assert found["questions"] == 6 and found["accuracy"]["value"] == 1.0 and found["ece"] == pytest.approx(0.1)
    assert {kind: one["pairs"] for kind, one in found["kinds"].items()} == {"harmless": 3, "honest": 3}
    assert file in evaluate.inputs(run)
    page = "".join(results({"models": {}, "label_questions": {str(file): found}}))
    assert "AI labels on questions" in page and "pairs 6" in page


def test_a_file_that_is_not_there_is_a_line_before_the_run(make_run: Callable[..., RunContext], tmp_path: Path) -> None:
    from cai_dist.config.checks.evaluate import missing_choice_files

    config = make_run(evaluate=EvaluateConfig(label_questions=(str(tmp_path / "no.jsonl"), "world"))).config
    [line] = missing_choice_files(config)
    assert line.startswith("evaluate.label_questions=") and "no such file" in line
