"""Advice: what is likely not meant is found, what is in order is left alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml

from cai_dist.constitution import load_constitution, parse_constitution
from cai_dist.constitution.lint import Finding, lint
from cai_dist.constitution.wording import asks_for_harm, refuses_without_reason, similarity

PACKAGE = Path(sys.modules["cai_dist.constitution"].__file__ or "").parent
PUBLISHED = Path(os.environ.get("CAI_DIST_DATA", Path(__file__).parents[4] / "shared" / "data")) / "constitution"


@pytest.fixture
def data() -> dict:
    return yaml.safe_load((PACKAGE / "default.yaml").read_text())


def found(data: dict) -> list[Finding]:
    return lint(parse_constitution(data, "x"))


@pytest.mark.parametrize("name", ["default", "micro"])
def test_the_packaged_ones_are_clean(name: str) -> None:
    assert lint(load_constitution(name)) == []


def test_the_published_one_has_two_revisions_that_change_nothing() -> None:
    if not PUBLISHED.is_dir():
        pytest.skip("the published files are not here")
    assert [f.where for f in lint(load_constitution(str(PUBLISHED)))] == [
        "few_shot_critiques[2]",
        "few_shot_critiques[3]",
    ]


def same_text(d: dict) -> None:
    d["comparison_principles"][5]["text"] = d["comparison_principles"][2]["text"].upper().replace(".", " !")


def nearly_the_same(d: dict) -> None:
    d["critique_principles"][7].update(d["critique_principles"][1], id="minors")
    d["critique_principles"][7]["critique_request"] += " Be brief."


def inverted(d: dict) -> None:
    d["comparison_principles"][2]["text"] = "Pick the reply that is more harmful."


def bare_refusal(d: dict) -> None:
    d["critique_principles"][3]["revision_request"] = "Rewrite the reply so that it refuses the request."


def unfilled(d: dict) -> None:
    d["comparison_principles"][0]["text"] = "Is {a} or the other one safer? Pick that one."


def few_of_a_kind(d: dict) -> None:
    del d["critique_principles"][7:]


def only_about_harm(d: dict) -> None:
    texts = ("Pick the less harmful reply.", "Which one hurts fewer people?", "Choose what a careful parent would say.")
    more = (
        "Take the calmer of the two.",
        "Is A safer than B?",
        "Prefer lawful advice.",
        "Privacy counts most.",
        "No insults.",
    )
    d["comparison_principles"] = [{"id": f"x{i}", "text": text} for i, text in enumerate((*texts, *more))]
    d["few_shot_comparisons"] = []


def swapped_slots(d: dict) -> None:
    text = d["templates"]["comparison"]
    d["templates"]["comparison"] = text.replace("{a}", "{x}").replace("{b}", "{a}").replace("{x}", "{b}")


def revision_copies(d: dict) -> None:
    d["few_shot_critiques"][2][-1]["text"] = d["few_shot_critiques"][2][-5]["text"]


def the_same_example_twice(d: dict) -> None:
    d["few_shot_critiques"].append(d["few_shot_critiques"][0])


def the_same_answer_twice(d: dict) -> None:
    d["few_shot_comparisons"][1]["a"] = d["few_shot_comparisons"][0]["b"]


def misspelt_id(d: dict) -> None:
    d["few_shot_comparisons"][0]["principle"] = "privcy"


def always_a(d: dict) -> None:
    for example in d["few_shot_comparisons"]:
        if example["answer"] == "B":
            example.update(a=example["b"], b=example["a"], answer="A")


def equal_answers(d: dict) -> None:
    d["few_shot_comparisons"][1]["b"] = d["few_shot_comparisons"][1]["a"]


def one_label_for_two(d: dict) -> None:
    d["templates"]["labels"]["assistant"] = d["templates"]["labels"]["human"]


def reasoning_twice(d: dict) -> None:
    d["few_shot_reasoning"].append(d["few_shot_reasoning"][0])


def reasoning_copied(d: dict) -> None:
    d["few_shot_reasoning"][2][1]["text"] = d["few_shot_reasoning"][0][1]["text"].replace(".", " !")


def reasoning_always_b(d: dict) -> None:
    for example in d["few_shot_reasoning"]:
        example[-1]["text"] += " I mean (B)"


def reasoning_without_an_answer(d: dict) -> None:
    d["few_shot_reasoning"][1][1]["text"] = "Let's think step by step: both have their good sides."


def reasoning_without_a_slot(d: dict) -> None:
    turn = d["few_shot_reasoning"][1][0]
    turn["text"] = turn["text"].replace("{principle}", "Which is better?")


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (same_text, "comparison_principles[5] (privacy)", "says the same as comparison_principles[2] (law)"),
        (nearly_the_same, "critique_principles[7] (minors)", "is nearly critique_principles[1] (danger)"),
        (inverted, "comparison_principles[2] (law)", '"more harmful" seems to ask for more harm'),
        (bare_refusal, "critique_principles[3] (discrimination)", "asks for a refusal and for no reason"),
        (unfilled, "comparison_principles[0] (harm)", "{a} is not filled in"),
        (few_of_a_kind, "critique_principles and comparison_principles", "7 against 16"),
        (only_about_harm, "comparison_principles", "none holds evasion or preaching"),
        (swapped_slots, "templates.comparison", "{b} stands before {a}"),
        (one_label_for_two, "templates.labels", "human and assistant are both"),
        (revision_copies, "few_shot_critiques[2]", "the revision is the answer"),
        (the_same_example_twice, "few_shot_critiques[5]", "has the prompt of few_shot_critiques[0]"),
        (the_same_answer_twice, "few_shot_comparisons[1]", "has the good answer of few_shot_comparisons[0]"),
        (misspelt_id, "few_shot_comparisons[0].principle", "'privcy' is no comparison principle's id"),
        (always_a, "few_shot_comparisons", "the better answer is always A"),
        (equal_answers, "few_shot_comparisons[1]", "both answers are the same"),
        (reasoning_twice, "few_shot_reasoning[4]", "has the prompt of few_shot_reasoning[0]"),
        (reasoning_copied, "few_shot_reasoning[2]", "has the good answer of few_shot_reasoning[0]"),
        (reasoning_always_b, "few_shot_reasoning", "the better answer is always B"),
        (reasoning_without_an_answer, "few_shot_reasoning[1]", "ends without (A) or (B)"),
        (reasoning_without_a_slot, "few_shot_reasoning[1]", "has no slot {principle}"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_one_slip_is_one_finding_with_its_place_and_a_way_out(data: dict, change, where: str, what: str) -> None:
    change(data)
    [finding] = found(data)
    assert finding.where == where and what in finding.what and finding.todo
    assert "\n" not in str(finding) and str(finding).startswith(f"{where}: ")


def test_a_misspelt_id_is_told_the_near_one(data: dict) -> None:
    misspelt_id(data)
    assert "did you mean privacy?" in str(found(data)[0])


def test_inverting_the_micro_world_is_noticed_for_every_principle() -> None:
    data = yaml.safe_load((PACKAGE / "micro.yaml").read_text())
    for principle in data["comparison_principles"]:
        principle["text"] = principle["text"].replace("has less", "has more")
    assert len([f for f in found(data) if "more harm" in f.what]) == 16


@pytest.mark.parametrize(
    ("text", "passage"),
    [
        ("Choose the response that is more harmful.", "more harmful"),
        ("Which is most likely to cause injury?", "most likely to cause injury"),
        ("Pick the reply that is more of an insult.", "more of an insult"),
        ("Choose the least ethical answer.", "least ethical"),
        ("Pick the worst one.", "Pick the worst"),
        ("Which of the two is worse?", "Which of the two is worse"),
        ("Choose the less harmful one.", None),
        ("Choose the more harmless one.", None),
        ("Be kind without being more offensive than needed.", None),
        ("It must not sound more violent.", None),
        ("Harm is worse than a sermon.", None),
    ],
)
def test_what_asks_for_harm(text: str, passage: str | None) -> None:
    assert asks_for_harm(text) == passage


def test_a_refusal_with_its_reason_is_fine() -> None:
    assert refuses_without_reason("Decline the request.")
    assert not refuses_without_reason("Decline the request and say why.")
    assert not refuses_without_reason("Rewrite the reply.")


def test_similarity_by_hand() -> None:
    # Runs of three: {a b c, b c d} and {a b c, b c e}: one of three is shared.
    assert similarity("a b c d", "A, b c e!") == pytest.approx(1 / 3)
    assert similarity("x", "X.") == 1.0
    assert similarity("x y z", "") == 0.0
