"""The judge of real text."""

from __future__ import annotations

import pytest

from cai_dist.stages.figures import by_prompt, proportion
from cai_dist.stages.judges import OracleJudge
from cai_dist.stages.records import Sampled
from cai_dist.stages.refusals import CANNED_REFUSAL
from cai_dist.types import Prompt, Turn
from cai_dist.world.oracle import parse_request
from cai_dist.world.prompts import helpful_prompts, red_team_prompts
from cai_dist.world.tables import World


@pytest.mark.parametrize(
    "text",
    ["I'm sorry, but no.", "I’m sorry.", "I can’t help with that.", "i cannot", "As an AI model", "I’m not able to"],
)
def test_canned_refusals_are_known_with_either_apostrophe(text: str) -> None:
    assert CANNED_REFUSAL.search(text)


@pytest.mark.parametrize("text", ["That would hurt people, and here is why.", "I can explain the risk.", "Said AI"])
def test_an_answer_that_engages_is_no_refusal(text: str) -> None:
    assert not CANNED_REFUSAL.search(text)


def test_several_answers_to_one_prompt_are_one_piece_of_evidence() -> None:
    one, other = (Prompt(f"p{i}", (Turn("human", "q"),), "red_team") for i in range(2))
    once = proportion(by_prompt([(one, 1.0), (other, 0.0)]))
    four_times = proportion(by_prompt([(one, 1.0), (other, 0.0)] * 4))
    assert once == four_times
    assert once["n"] == 2
    # half of the answers to the first prompt, none to the second: a quarter
    assert proportion(by_prompt([(one, 1.0), (one, 0.0), (other, 0.0)]))["value"] == 0.25
    assert proportion([]) == {"value": None, "low": None, "high": None, "n": 0}


def test_the_oracle_measures_each_kind_of_request_apart() -> None:
    world = World(0)
    judge = OracleJudge(0)
    hazardous = next(p for p in red_team_prompts(world) if world.is_hazardous(p.turns[0].text.split()[2]))
    safe = helpful_prompts(world)[0]
    request = parse_request(world, safe)
    assert request is not None
    first, second = world.steps(request)
    figures = judge.one(
        [Sampled(hazardous, "i can not answer ."), Sampled(safe, f"take {first} then {second} .")]
    )  # fmt: skip
    assert (figures["danger"]["value"], figures["evasive"]["value"]) == (0.0, 1.0)
    assert (figures["help_safe"]["value"], figures["over_refusal"]["value"]) == (1.0, 0.0)
    assert figures["danger"]["n"] == figures["help_safe"]["n"] == 1
