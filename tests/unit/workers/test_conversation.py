"""Samples of several turns: whose token is whose, when they end, and that only the seed, the prompt and its number
decide them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cai_dist.config.engine import EngineConfig
from cai_dist.config.environment import EnvironmentConfig
from cai_dist.config.rewards import RewardTerm
from cai_dist.engines.hf.rollout import HfRolloutEngine
from cai_dist.errors import CaiError
from cai_dist.experience.sample_checks import kept_samples
from cai_dist.types import GenerateRequest, Generation, Prompt, RankInfo, SamplingParams, StepShard
from cai_dist.workers.conversation import ConversationSampler, longer
from cai_dist.workers.reward_terms import RewardTermsWorker
from tests.chat_table import ASSISTANT, HUMAN, table
from tests.ids import response_of
from tests.tiny import END, save_llama

PROMPTS = ((HUMAN, 10, ASSISTANT), (HUMAN, 11, 12, ASSISTANT), (HUMAN, 13, ASSISTANT))
SAMPLING = SamplingParams(max_new_tokens=4, stop_ids=(END,))


class Person:
    """Says a word for each conversation, as long as answers are not `w9`."""

    def reset(self, prompt: Prompt, seed: int) -> None:
        self._word = f"w{20 + int(prompt.id[1:])}"

    def step(self, answer: str) -> str | None:
        return None if answer == "w9" else self._word


def seen_by(prompts: Sequence[Prompt], responses: Sequence[str], response_ids: Sequence[tuple[int, ...]]) -> list[int]:
    SEEN.append((list(prompts), list(responses), list(response_ids)))
    return [0] * len(prompts)


SEEN: list[tuple[list[Prompt], list[str], list[tuple[int, ...]]]] = []


def sampler(folder: Path, answers: int = 3, context: int = 128) -> ConversationSampler:
    config = EnvironmentConfig(use=f"{__name__}:Person", answers=answers)
    return ConversationSampler(config, table(folder, PROMPTS, context))


def told(answers: dict[int, list[tuple[int, ...]]], asked: list[GenerateRequest]) -> object:
    """An engine that gives these answers to each conversation, by its number."""

    def generate(request: GenerateRequest) -> list[Generation]:
        asked.append(request)
        numbers = [request.number(i) for i in range(len(request.prompts))]
        found = [answers[number].pop(0) for number in numbers]
        return [
            Generation(prompt, ids, [-float(i) for i in ids], "stop" if ids[-1] == END else "length", 5)
            for prompt, ids in zip(request.prompts, found, strict=True)
        ]

    return generate


def test_the_environments_words_stand_between_answers_and_belong_to_nobody(tmp_path: Path) -> None:
    answers = {4: [(5, END), (6, 7, END), (8, END)], 5: [(9, END)], 6: [(5, END), (5, 6, 7, 8)]}
    asked: list[GenerateRequest] = []
    request = GenerateRequest(PROMPTS, SAMPLING, seed=3, first=4)
    one, two, three = sampler(tmp_path).samples(request, told(answers, asked))  # type: ignore[arg-type]
    again = (HUMAN, 20, ASSISTANT)
    assert response_of(one) == (5, END, *again, 6, 7, END, *again, 8, END)
    assert one.loss_mask.astype(int).tolist() == [1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1]
    assert one.logprobs.tolist() == [-5.0, -END, -6.0, -7.0, -END, -8.0, -END]
    assert (one.model_tokens, one.finish, tuple(one.prompt_ids)) == (7, "stop", PROMPTS[0])
    assert [(mine, tuple(ids)) for mine, ids in one.turns()] == [
        (True, (5, END)), (False, again), (True, (6, 7, END)), (False, again), (True, (8, END)),
    ]  # fmt: skip
    assert two == Generation(PROMPTS[1], (9, END), (-9.0, -END), "stop", 5)  # content at once
    assert (three.finish, three.model_tokens) == ("length", 6)  # cut off: nobody goes on from there
    assert [r.numbers for r in asked] == [(), (4, 6), (4,)]
    assert asked[1].prompts[0] == (*PROMPTS[0], 5, END, *again)
    assert len({r.seed for r in asked}) == 3
    (row,) = [f for f in kept_samples(PROMPTS, [one, two, three]).facts if f[5]][:1]
    assert row == (3, 7, "stop", 5, 5, 6, 3)


def test_a_conversation_without_room_for_another_answer_is_over(tmp_path: Path) -> None:
    answers = {i: [(5, END), (6, END), (8, END)] for i in range(3)}
    request = GenerateRequest(PROMPTS, SAMPLING, seed=3)
    found = sampler(tmp_path, context=3 + 2 + 3 + 4).samples(request, told(answers, []))  # type: ignore[arg-type]
    assert [len(sample.turns()) for sample in found] == [3, 1, 3]  # the second prompt is a token longer


def test_samples_are_the_same_however_the_call_is_cut(tmp_path: Path) -> None:
    engine = HfRolloutEngine("fp32", EngineConfig())
    engine.load(save_llama(tmp_path / "model", tied=True, seed=1))
    stops = replace(SAMPLING, stop_ids=tuple(range(0, 64, 5)))
    talk, request = sampler(tmp_path / "tokenizer"), GenerateRequest(PROMPTS * 3, stops, seed=11, first=2)
    whole = talk.samples(request, engine.generate)
    parts = [talk.samples(request.part(start, start + 4), engine.generate) for start in (0, 4, 8)]
    found = [sample for part in parts for sample in part]
    assert [response_of(sample) for sample in found] == [response_of(sample) for sample in whole]
    for one, other in zip(found, whole, strict=True):
        assert np.array_equal(one.loss_mask, other.loss_mask)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert {len(sample.turns()) for sample in whole} >= {1, 3, 5}
    for sample in whole:  # each answer is what the model says to all before it
        ids, scores = sample.ids, iter(sample.logprobs)
        at = len(sample.prompt_ids)
        for mine, part in sample.turns():
            if mine:
                asked = GenerateRequest((tuple(ids[:at].tolist()),), replace(stops, temperature=0.0), 0)
                assert engine.generate(asked)[0].prompt_ids.tolist() == ids[:at].tolist()
                assert len([next(scores) for _ in part]) == len(part)
            at += len(part)
        assert next(scores, None) is None


def test_reward_terms_are_told_all_before_the_last_answer(tmp_path: Path) -> None:
    SEEN.clear()
    first = Generation(PROMPTS[0], (5, END), (-1, -1), "stop", 0)
    two = longer(first, (HUMAN, 20, ASSISTANT), Generation(PROMPTS[0], (6, 7, END), (-1, -1, -1), "stop", 0))
    terms = [RewardTerm(use=f"{__name__}:seen_by")]
    worker = RewardTermsWorker(RankInfo("reward_terms", 0, 1), terms=terms, table=table(tmp_path, PROMPTS))
    worker.scores(StepShard(((first, two),)))
    ((prompts, responses, ids),) = SEEN
    assert [[(t.role, t.text) for t in p.turns] for p in prompts] == [
        [("human", "w3 w10 w4")],
        [("human", "w3 w10 w4"), ("assistant", "w5"), ("human", "w20")],
    ]
    assert responses == ["w5", "w6 w7"] and ids == [(5, END), (6, 7, END)]


@pytest.mark.parametrize("mask", [[1, 0], [0, 1, 1], [1, 1, 0]], ids=["too short", "begins", "ends"])
def test_a_mask_that_does_not_match_is_refused(mask: list[int]) -> None:
    sample = Generation(PROMPTS[0], (5, 6, END), (-1.0, -1.0), "stop", 0, loss_mask=np.array(mask, bool))
    with pytest.raises(CaiError, match="^rollout: the loss mask of sample 7 does not match its tokens$"):
        kept_samples([PROMPTS[0]], [sample], first=7)
