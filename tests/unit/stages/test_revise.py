"""The rounds of revision: what does not parse is noted, kept out, and the answer before it stays."""

from __future__ import annotations

import pytest

from cai_dist.config.run import ReviseConfig
from cai_dist.data.chat import ChatFormat
from cai_dist.stages.revise import _Reviser
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
    [first, second] = _Reviser(run, FakeGroup(answer), tmp_path, "m", chat).revise([PROMPT])  # type: ignore[arg-type]
    assert (first.response, first.failure) == ("take wrap then melt .", "")
    assert (second.response, second.failure) == (response, failure)
    assert second.critique == said
