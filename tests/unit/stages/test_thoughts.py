"""What a reasoning model thinks before an answer is kept, and is no part of what is judged, shown or scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cai_dist.config.supervised import ReviseConfig
from cai_dist.config.training import SamplingConfig
from cai_dist.data.chat import ChatFormat
from cai_dist.data.tables import read_rows
from cai_dist.models.load import load_scalar
from cai_dist.stages.execution.generation import Ask, generate
from cai_dist.stages.ppo import _transcript
from cai_dist.stages.revise import stage_reviser
from cai_dist.stages.tables.records import read_revisions, write_revisions
from cai_dist.types import GenerateRequest, Generation, Prompt, RankInfo, StepShard, Trajectory, Turn
from cai_dist.workers.reward import RewardWorker
from tests.tiny import END, save_llama
from tests.unit.data.chat_families import FAMILIES, tokenizer

from .conftest import FakeGroup

FAMILY = {family.name: family for family in FAMILIES}
R1 = FAMILY["DeepSeek R1 distils"]
PROMPT = Prompt("p", (Turn("human", "Hi?"),), "red_team")


def chat_of(name: str = R1.name) -> ChatFormat:
    family = FAMILY[name]
    return ChatFormat(tokenizer(family), arguments=dict(family.arguments))


def ids_of(chat: ChatFormat, text: str) -> tuple[int, ...]:
    return tuple(chat.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("name", "said", "thoughts", "answer"),
    [
        (R1.name, "<think>\nHe says hi.\n</think>\n\nHello!", "He says hi.", "Hello!"),
        (R1.name, " <think>x</think>Hello!", "x", "Hello!"),
        (R1.name, "<think>\nHe says", "He says", ""),
        (R1.name, "Hello!", "", "Hello!"),
        (R1.name, "Bad.</think>Good.", "", "Bad.</think>Good."),
        (R1.name, "Hi <think>x</think> there", "", "Hi <think>x</think> there"),
        (R1.name, "<think>a</think>b</think>c", "a", "b</think>c"),
        ("Qwen 3", "<think>\nx\n</think>\n\nHello!<|im_end|>", "x", "Hello!"),
        ("Command R7B", "<|START_THINKING|>x<|END_THINKING|>Hello!", "x", "Hello!"),
        ("Gemma 4", "<|channel>thought\nx\n<channel|>Hello!<turn|>", "x", "Hello!"),
        ("gpt-oss", "<|channel|>analysis<|message|>x<|channel|>final<|message|>Hello!<|return|>", "x", "Hello!"),
        ("ChatML (Hermes, Yi)", "<think>x</think>Hello!", "", "<think>x</think>Hello!"),
        ("Phi 4", "Hello!", "", "Hello!"),
    ],
)
def test_thoughts_are_what_a_response_begins_with(name: str, said: str, thoughts: str, answer: str) -> None:
    """By the marks of the model's own tokenizer or template; a mark further on is a word of the answer."""
    chat = chat_of(name)
    assert chat.thoughts_and_answer(ids_of(chat, said)) == (thoughts, answer)
    assert chat.response_text(ids_of(chat, said)) == answer


class Answers(FakeGroup):
    """Says the texts in turn, and keeps what it was asked."""

    def __init__(self, chat: ChatFormat, said: list[str]) -> None:
        self.asked: list[str] = []
        left = iter(said)

        def answer(method: str, request: GenerateRequest) -> list[Generation]:
            made = []
            for prompt in request.prompts:
                self.asked.append(chat.tokenizer.decode(list(prompt)))
                ids = ids_of(chat, next(left))
                made.append(Generation(prompt, ids, (0.0,) * len(ids), "stop", 0))
            return made

        super().__init__(answer)


def test_shards_keep_thoughts_beside_the_answer_and_say_where_none_was_reached(make_run, tmp_path: Path) -> None:
    run, chat, warned = make_run(), chat_of(), []
    run.console.warn = warned.append  # type: ignore[method-assign]
    group = Answers(chat, ["<think>a</think>b", "<think>on and on", "c"])
    answers = generate(
        run, group, tmp_path, "x", [Ask(str(i), (1,)) for i in range(3)], model="m", chat=chat,
        sampling=SamplingConfig(max_new_tokens=8), shard_size=8,
    )  # fmt: skip
    found = [("a", "b"), ("on and on", ""), ("", "c")]
    assert [(a.thoughts, a.text) for a in answers] == found
    assert [(r["thoughts"], r["text"]) for r in read_rows(tmp_path / "x" / "00000.parquet")] == found
    assert len(warned) == 1 and "1 of 3 answers were not reached" in warned[0] and "max_new_tokens" in warned[0]


def test_nobody_criticises_thoughts_and_the_table_has_them(make_run, tmp_path: Path) -> None:
    run, chat = make_run(revise=ReviseConfig(rounds=1)), chat_of()
    said = ["<think>plan A</think>First.", "<think>plan B</think>Too short.", "<think>plan C</think>Second."]
    group = Answers(chat, said)
    revisions = stage_reviser(run, group, tmp_path, "m", chat).revise([PROMPT])  # type: ignore[arg-type]
    assert [r.response for r in revisions] == ["First.", "Second."] and revisions[1].critique == "Too short."
    assert not any("plan" in prompt or "think" in prompt for prompt in group.asked)
    write_revisions(tmp_path / "r.parquet", revisions)
    assert [r.thoughts for r in read_revisions(tmp_path / "r.parquet")] == ["plan A", "plan C"]


def test_a_table_from_before_there_were_thoughts_is_read(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from cai_dist.stages.tables.records import Revision

    write_revisions(tmp_path / "r.parquet", [Revision(PROMPT, 0, "", "", "x", "", "y")])
    table = pq.read_table(tmp_path / "r.parquet").drop_columns(["thoughts"])
    pq.write_table(table, tmp_path / "old.parquet")
    assert read_revisions(tmp_path / "old.parquet")[0].thoughts == ""


def test_the_reward_is_that_of_the_answer_alone(tmp_path: Path) -> None:
    """Ids 3 4 open thoughts and 5 closes them: the score is that of prompt, answer and end token; with no answer, of an
    empty one."""
    from cai_dist.data.thoughts import ThoughtIds

    causal = save_llama(tmp_path / "causal", tied=True, seed=0, pad=END)
    load_scalar(causal, "fp32", 1).hf.save_pretrained(tmp_path / "scalar")
    marks = ThoughtIds((((3, 4), (5, 8)), ((3, 4), (5,))))
    worker = RewardWorker(
        RankInfo("reward", 0, 1), model=str(tmp_path / "scalar"), dtype="fp32", end_id=END, thoughts=marks
    )
    said = [(3, 4, 9, 9, 5, 8, 6, 7, END), (3, 4, 9, 5, 6, 7), (3, 4, 9, 9), (6, 3, 4, 5, 7, END)]
    left = [(6, 7, END), (6, 7, END), (END,), (6, 3, 4, 5, 7, END)]
    samples = tuple(Generation((1, 9), ids, (), "stop", 0) for ids in said)
    model, expected = load_scalar(str(tmp_path / "scalar"), "fp32", 0), []
    for ids in left:
        with torch.no_grad():
            expected.append(model(torch.tensor((1, 9, *ids)), torch.tensor([2 + len(ids)]))[-1].item())
    assert worker.scores(StepShard((samples,))) == pytest.approx(expected, abs=1e-5)


NUMBERS = (
    "old_logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns", "sampler_logprobs", "weights",
)  # fmt: skip


def test_transcripts_of_ppo_show_thoughts_apart(tmp_path: Path) -> None:
    chat = chat_of()
    prompt, none = chat.prompt_ids(PROMPT.turns), dict.fromkeys(NUMBERS, ())
    said = [ids_of(chat, text) for text in ("<think>a</think>b", "c")]
    batch = [Trajectory(prompt, ids, score=1.0, finish="stop", weight_version=0, prompt_id="p", **none) for ids in said]
    after = chat.next_turn_ids("No?")
    talk = np.array([1] * len(said[1]) + [0] * len(after) + [1] * len(said[0]), bool)
    batch.append(replace(batch[0], response_ids=np.array([*said[1], *after, *said[0]]), loss_mask=talk))
    _transcript(tmp_path / "iteration-00003.jsonl", batch, chat)
    first, second, third = map(
        json.loads, (tmp_path / "iteration-00003.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert (first["prompt"], first["response"], first["thoughts"]) == ("Hi?", "b", "a")
    assert second["response"] == "c" and not {"thoughts", "before"} & {*second}
    assert (third["before"], third["response"], third["thoughts"]) == (["c", "No?"], "b", "a")
