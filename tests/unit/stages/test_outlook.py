"""What later stages want of the data is looked for in `prepare`."""

from __future__ import annotations

from typing import Any

import pytest

from cai_dist.config.loading.load import build_run
from cai_dist.data.chat import ChatFormat
from cai_dist.errors import DataError
from cai_dist.stages import prepare
from cai_dist.stages.preflight import token_counts
from cai_dist.stages.preflight.token_counts import few_comparisons, room_problem
from cai_dist.stages.tables.records import write_comparisons, write_prompts
from cai_dist.types import Prompt, Turn
from cai_dist.world.tokenizer import build_tokenizer

CHAT = ChatFormat(build_tokenizer())


def prompts(*lengths: int) -> list[Prompt]:
    return [Prompt(f"p{n}", (Turn("human", " ".join(["how"] * n)),), "red_team") for n in lengths]


def test_a_stage_whose_answers_fit_behind_no_prompt_is_refused() -> None:
    around = len(CHAT.prompt_ids(prompts(1)[0].turns)) - 1
    config = build_run({"name": "x", "models": {"context": 140}})
    assert room_problem(config, "ppo", "helpful", CHAT, prompts(90, 12 - around)) is None  # 12 + 128 = 140
    line = room_problem(config, "ppo", "helpful", CHAT, prompts(90, 13 - around))
    assert line is not None and line.startswith(
        "ppo.sampling.max_new_tokens=128: none of 2 helpful prompts leaves room"
    )
    assert "(the shortest has 13 tokens)" in line
    assert room_problem(config, "ppo", "helpful", CHAT, []) is None


@pytest.mark.parametrize(
    ("fraction", "human", "said"),
    [
        (0.5, 20, None),  # answers may be equal: half of the pairs may get no label
        (
            0.5,
            19,
            "up to 40 human comparisons beside up to 40 of the feedback model, and there are 19; set it to 0.32",
        ),
        (0.75, 59, "asks for up to 120 human comparisons"),
        (0.0, 0, None),
    ],
)
def test_human_comparisons_that_may_be_too_few_are_counted_ahead(fraction: float, human: int, said: str | None) -> None:
    tree: dict[str, Any] = {"preference": {"helpful_fraction": fraction}, "feedback": {"pairs_per_prompt": 2}}
    line = few_comparisons(build_run({"name": "x"} | tree), 20, human)
    assert line is None if said is None else said in str(line)
    tree["dpo"] = tree.pop("preference")
    line = few_comparisons(build_run({"name": "x", "alignment": "dpo"} | tree), 20, human)
    assert line is None if said is None else str(line).startswith("dpo.helpful_fraction")


def test_prepare_refuses_what_will_be_missing_all_at_once(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(models={"context": 140}, preference={"helpful_fraction": 0.5})
    folder = run.folder(prepare.NAME)
    write_prompts(folder / "red_team.parquet", prompts(60))
    write_prompts(folder / "helpful.parquet", [])
    write_comparisons(folder / "human.parquet", [])
    monkeypatch.setattr(token_counts, "chat_format", lambda run, path: CHAT)
    with pytest.raises(DataError) as caught:
        token_counts.check_tables(run, {"assistant": "a", "pretrained": "b"})
    lines = str(caught.value).splitlines()
    assert [line.split(".")[0] for line in lines] == ["revise", "feedback", "ppo", "preference"]
