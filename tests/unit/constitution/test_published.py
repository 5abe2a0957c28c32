"""The published JSON files load unchanged, quirks included."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from cai_dist.constitution import comparison_text, load_constitution, reasoning_turns
from cai_dist.constitution.published import COMPARISON_EXAMPLES, COMPARISONS, CRITIQUES
from cai_dist.errors import DataError
from cai_dist.types import Turn


def published() -> Path:
    root = Path(os.environ.get("CAI_DIST_DATA") or Path(__file__).parents[4] / "shared" / "data")
    folder = root / "constitution"
    if not (folder / CRITIQUES).is_file():
        pytest.skip(f"the published constitution is not at {folder}; set CAI_DIST_DATA")
    return folder


def test_labels_are_taken_off_and_nothing_else_is_lost() -> None:
    folder = published()
    constitution = load_constitution(str(folder))
    raw = json.loads((folder / CRITIQUES).read_text())
    assert [p.id for p in constitution.critique_principles] == list(raw)
    for principle in constitution.critique_principles:
        entry = raw[principle.id]
        assert f"\n\nCritiqueRequest: {principle.critique_request}\n\nCritique:" == entry["prompt"][0]
        assert f"\n\nRevisionRequest: {principle.revision_request}\n\nRevision:" == entry["edit_request"]


def test_what_is_to_be_thought_about_is_asked_as_the_worked_examples_ask_it() -> None:
    constitution = load_constitution(str(published()))
    turns = reasoning_turns(
        constitution, (Turn("human", "Q"),), constitution.comparison_principles[0], "one", "two", few_shot=1
    )
    shown, asked = turns[0].text, turns[-1].text
    opening = "Consider the following conversation between a human"
    assert shown.startswith(opening) and asked.startswith(f"{opening} and an assistant:\n\nHuman: Q\n\n")
    assert " (A) [[[" in shown and asked.endswith("\n (A) [[[one]]]\n (B) [[[two]]]")
    # The plain question keeps its own ending.
    plain = comparison_text(constitution, (Turn("human", "Q"),), "P", "one", "two")
    assert plain.endswith("Options:\n(A) one\n(B) two\nThe answer is:")


def test_comparison_principles_fit_the_template() -> None:
    constitution = load_constitution(str(published()))
    assert len(constitution.comparison_principles) == 16
    for principle in constitution.comparison_principles:
        text = comparison_text(constitution, (Turn("human", "Q"),), principle.text, "one", "two")
        assert text.count("Options:") == 1
        assert text.endswith("Options:\n(A) one\n(B) two\nThe answer is:")


def test_worked_examples_are_whole() -> None:
    constitution = load_constitution(str(published()))
    # Dialogues 0, 3 and 4 have two exchanges before the critique; number 3 lacks the closing "Human:" of the others.
    assert [len(d) for d in constitution.few_shot_critiques] == [8, 6, 6, 8, 8]
    assert all(d[-1].role == "revision" and d[-1].text for d in constitution.few_shot_critiques)
    assert [[t.role for t in d] for d in constitution.few_shot_reasoning] == [["human", "assistant", "human"]] * 6
    assert all(d[0].text.count("{principle}") == 1 for d in constitution.few_shot_reasoning)
    assert all(t.text == t.text.strip() for d in constitution.few_shot_reasoning for t in d)
    answers = [e.answer for e in constitution.few_shot_comparisons]
    assert sorted(answers) == ["A", "A", "A", "B", "B"]


def test_the_marked_answer_is_the_correct_one() -> None:
    folder = published()
    raw = json.loads((folder / COMPARISON_EXAMPLES).read_text())
    for example, entry in zip(load_constitution(str(folder)).few_shot_comparisons, raw, strict=True):
        assert {"A": example.a, "B": example.b}[example.answer] == entry["corrects"][0].strip()


@pytest.mark.parametrize(
    ("file", "content", "entry"),
    [
        (CRITIQUES, '{"harmful0": {"prompt": ["no label"], "edit_request": "x"}}', "'harmful0'"),
        (CRITIQUES, '{"harmful0": {"prompt": []}}', "'harmful0'"),
        (CRITIQUES, "[]", "object"),
        (CRITIQUES, "{", "JSON"),
        (COMPARISONS, '["Choose well."]', "entry 0"),
        (COMPARISON_EXAMPLES, '[{"prompt": "\\n\\nHuman: x\\n\\nAssistant:", "corrects": []}]', "entry 0"),
        (COMPARISON_EXAMPLES, '[{"prompt": "no label", "corrects": ["a"], "incorrects": ["b"]}]', "entry 0"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: str, entry: str) -> None:
    folder = tmp_path / "c"
    shutil.copytree(published(), folder)
    (folder / file).chmod(0o644)
    folder.chmod(0o755)
    (folder / file).unlink()
    (folder / file).write_text(content)
    with pytest.raises(DataError) as caught:
        load_constitution(str(folder))
    assert file in str(caught.value) and entry in str(caught.value) and "\n" not in str(caught.value)
