"""The rounds of revision: what does not parse is noted, kept out, and the answer before it stays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cai_dist.config.supervised import ReviseConfig
from cai_dist.data.chat import ChatFormat
from cai_dist.stages import sft
from cai_dist.stages.revise import stage_reviser
from cai_dist.stages.tables.records import write_revisions
from cai_dist.tracking.metrics import read_metrics
from cai_dist.types import GenerateRequest, Generation, Prompt, Turn
from cai_dist.world.tokenizer import build_tokenizer

from .conftest import FakeGroup

PROMPT = Prompt("p", (Turn("human", "make rope abrax ?"),), "red_team")


@pytest.mark.parametrize(
    ("critique", "said", "failure", "response"),
    [
        (True, "it mocks ann .", "", "no ."),
        (True, "", "no_critique", "take wrap then melt ."),
        (False, "", "", "no ."),
    ],
)
def test_a_critique_that_does_not_parse_is_a_failure_of_its_round(
    make_run, tmp_path, critique, said, failure, response
) -> None:
    tokenizer = build_tokenizer()
    answers = iter(["take wrap then melt .", *([said] if critique else []), "no ."])

    def answer(method: str, request: GenerateRequest) -> list[Generation]:
        ids = tuple(tokenizer(next(answers))["input_ids"])
        return [Generation(p, ids, (0.0,) * len(ids), "stop", 0) for p in request.prompts]

    run = make_run(revise=ReviseConfig(rounds=1, critique=critique))
    chat = ChatFormat(tokenizer, "template", run.constitution.templates.labels)
    [first, second] = stage_reviser(run, FakeGroup(answer), tmp_path, "m", chat).revise([PROMPT])  # type: ignore[arg-type]
    assert (first.response, first.failure) == ("take wrap then melt .", "")
    assert (second.response, second.failure) == (response, failure)
    assert second.critique == said


class Script:
    """Answers by prompt and phase: `said[(label, text in the prompt)]` are the texts of one draw after the other."""

    def __init__(self, run, folder, said: dict[tuple[str, str], list[str]]) -> None:
        self.said, self.asked = {key: list(texts) for key, texts in said.items()}, []
        tokenizer = build_tokenizer()

        class Group(FakeGroup):
            def map(group, phase, method, items):
                label = phase.split(": ")[-1]
                for key, request in items.items():
                    yield key, [self.one(tokenizer, label, ids) for ids in request.prompts]

        chat = ChatFormat(tokenizer, "template", run.constitution.templates.labels)
        self.reviser = stage_reviser(run, Group(lambda *_: None), folder, "m", chat)  # type: ignore[arg-type]

    def one(self, tokenizer, phase: str, ids: tuple[int, ...]) -> Generation:
        prompt = tokenizer.decode(list(ids))
        self.asked.append((phase, prompt))
        key = next(k for k in self.said if k[0] == phase.split("-again")[0] and k[1] in prompt)
        out = tuple(tokenizer(self.said[key].pop(0))["input_ids"])
        return Generation(ids, out, (0.0,) * len(out), "stop", 0)


def ask(name: str) -> Prompt:
    return Prompt(name, (Turn("human", f"make {name} abrax ?"),), "red_team")


LOOP = "so " * 30


def test_a_text_that_cannot_be_used_is_drawn_again_and_then_counted(make_run, tmp_path) -> None:
    run = make_run(revise=ReviseConfig(rounds=1, retries=2))
    script = Script(
        run,
        tmp_path,
        {
            ("answer", "rope"): ["", "take wrap ."],  # the second draw
            ("answer", "lamp"): [LOOP, "", LOOP],  # never
            ("answer", "glue"): ["take dip ."],
            ("critique-1", "rope"): ["it mocks ann ."],
            ("critique-1", "glue"): ["", "", "it mocks bob ."],  # the third
            ("revision-1", "rope"): ["no ."],
            ("revision-1", "glue"): [LOOP, LOOP, ""],  # never
        },
    )
    found = script.reviser.revise([ask("rope"), ask("lamp"), ask("glue")])
    assert [(r.prompt.id, r.round, r.response, r.failure) for r in found] == [
        ("rope", 0, "take wrap .", ""),
        ("rope", 1, "no .", ""),
        ("lamp", 0, "", "runaway"),  # there is nothing to revise
        ("glue", 0, "take dip .", ""),
        ("glue", 1, "take dip .", "empty"),
    ]
    assert all(not texts for texts in script.said.values()), "every draw was used"
    # a second draw asks exactly what the first one asked
    again = [prompt for phase, prompt in script.asked if phase == "critique-1-again-2"]
    assert again == [p for phase, p in script.asked if phase == "critique-1" and "glue" in p]
    lines = [x for x in read_metrics(run.run_dir) if x["stage"] == "revise"]
    counted = ("step", "answers", "parse_failures", "retried", "left_out")
    assert [[line[k] for k in counted] for line in lines] == [[0, 3, 1, 3, 1], [1, 2, 1, 4, 0]]
    assert lines[0]["failed_runaway"] == lines[1]["failed_empty"] == 1
    assert trained(run, found, tmp_path) == {("rope", 1)}


@pytest.mark.parametrize(
    ("rule", "rounds", "learned"),
    [
        ("keep", {"rope": [0, 1, 2], "glue": [0, 1, 2]}, {("rope", 1), ("rope", 2), ("glue", 2)}),
        ("drop", {"rope": [0, 1, 2], "glue": [0, 1]}, {("rope", 1), ("rope", 2)}),
    ],
)
def test_the_rule_for_what_stays_unusable(make_run, tmp_path, rule, rounds, learned) -> None:
    run = make_run(revise=ReviseConfig(rounds=2, critique=False, unusable=rule))
    said = {
        ("answer", "rope"): ["take wrap ."],
        ("answer", "glue"): ["take dip ."],
        ("revision-1", "rope"): ["no ."],
        ("revision-1", "glue"): [LOOP],
        ("revision-2", "rope"): ["i can ."],
        ("revision-2", "glue"): ["i not ."],
    }
    found = Script(run, tmp_path, said).reviser.revise([ask("rope"), ask("glue")])
    of_prompt = {name: [r.round for r in found if r.prompt.id == name] for name in ("rope", "glue")}
    assert of_prompt == rounds
    assert [r.response for r in found if r.prompt.id == "glue"][:2] == ["take dip .", "take dip ."]
    assert trained(run, found, tmp_path) == learned
    lines = [x for x in read_metrics(run.run_dir) if x["stage"] == "revise"]
    assert [line["left_out"] for line in lines] == [0, int(rule == "drop"), 0]


def test_a_copy_of_a_worked_example_is_no_critique(make_run, tmp_path) -> None:
    run = make_run(revise=ReviseConfig(rounds=1))
    example = (Turn("critique", "it mocks ann ."),)
    run.constitution = replace(run.constitution, few_shot_critiques=(example,))
    script = Script(run, tmp_path, {("answer", ""): ["take ."], ("critique-1", ""): ["it mocks ann ."]})
    found = script.reviser.revise([PROMPT])
    assert [(r.response, r.failure) for r in found] == [("take .", ""), ("take .", "no_critique")]
    assert not any(phase.startswith("revision") for phase, _ in script.asked), "nothing to rewrite by"


def test_helpful_answers_are_drawn_again_and_counted_too(make_run, tmp_path) -> None:
    run = make_run(revise=ReviseConfig(retries=1))
    said = {("helpful", "rope"): ["", "take wrap ."], ("helpful", "lamp"): ["", ""]}
    found = Script(run, tmp_path, said).reviser.helpful([ask("rope"), ask("lamp")])
    assert [(r.response, r.failure) for r in found] == [("take wrap .", ""), ("", "empty")]
    [line] = [x for x in read_metrics(run.run_dir) if x["stage"] == "revise_helpful"]
    assert (line["answers"], line["parse_failures"], line["retried"], line["failed_empty"]) == (2, 1, 2, 1)


def trained(run, revisions, tmp_path) -> set[tuple[str, int]]:
    """(prompt, round) of what the next stage learns."""
    write_revisions(run.folder("revise") / "revisions.parquet", revisions)
    write_revisions(run.folder("revise") / "helpful.parquet", [])
    demos = sft.demonstrations(run)
    assert all(d.response for d in demos)
    return {(d.prompt.id, int(d.source.removeprefix("revision:"))) for d in demos}
