"""Reward and reference in this process: what they read, and that padding and neighbours change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cai_dist.data.batches import sample_batch
from cai_dist.models.load import load_scalar
from cai_dist.types import Generation, RankInfo, StepShard
from cai_dist.workers.forward import values_and_last
from cai_dist.workers.reference import ReferenceWorker
from cai_dist.workers.reward import RewardWorker
from tests.tiny import END, save_llama

INFO = RankInfo("reward", 0, 1)


def sample(prompt: tuple[int, ...], response: tuple[int, ...], finish: str = "stop") -> Generation:
    return Generation(prompt, response, (0.0,) * len(response), finish, 0)  # type: ignore[arg-type]


SAMPLES = (
    sample((3, 4), (5, 6, END)),
    sample((3, 4, 5, 6, 7), (8,), "length"),
    sample((9,), (END,)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    causal = save_llama(tmp_path_factory.mktemp("causal"), tied=True, seed=0, pad=END)
    path = tmp_path_factory.mktemp("scalar")
    load_scalar(causal, "fp32", 1).hf.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def reward(folder: str) -> RewardWorker:
    return RewardWorker(INFO, model=folder, dtype="fp32", end_id=END)


def test_a_score_is_read_at_the_last_token_and_a_cut_answer_is_closed_first(reward: RewardWorker, folder: str) -> None:
    model = load_scalar(folder, "fp32", 0)
    expected = []
    for ids in [(3, 4, 5, 6, END), (3, 4, 5, 6, 7, 8, END), (9, END)]:
        with torch.no_grad():
            expected.append(model(torch.tensor(ids), torch.tensor([len(ids)]))[-1].item())
    assert reward.scores(StepShard((SAMPLES,))) == pytest.approx(expected, abs=1e-5)


def test_a_conversation_is_scored_at_its_last_answer_with_all_before_it(reward: RewardWorker, folder: str) -> None:
    talk = replace(sample((3, 4), (5, END, 7, 8, 9)), loss_mask=np.array([1, 1, 0, 0, 1], bool))
    with torch.no_grad():
        expected = load_scalar(folder, "fp32", 0)(torch.tensor((3, 4, 5, END, 7, 8, 9, END)), torch.tensor([8]))[-1]
    assert reward.scores(StepShard(((talk, SAMPLES[0]),)))[0] == pytest.approx(expected.item(), abs=1e-5)


def test_scores_do_not_depend_on_the_batch(reward: RewardWorker) -> None:
    together = reward.scores(StepShard((SAMPLES,)))
    alone = reward.scores(StepShard(((SAMPLES[0],), (), (SAMPLES[1],), (SAMPLES[2],))))
    assert together == pytest.approx(alone, abs=1e-5)
    assert reward.scores(StepShard(((),))) == []


def test_values_belong_to_the_state_before_the_token_and_the_last_to_that_after_all(folder: str) -> None:
    model = load_scalar(folder, "fp32", 0)
    batch = sample_batch(SAMPLES)
    with torch.no_grad():
        (values, after), heads = values_and_last(model, batch), model(batch.ids, batch.lengths)
    # 5, 6 and 2 tokens: the first of each has no state before it, each other one that of its neighbour
    assert batch.lengths.tolist() == [5, 6, 2]
    expected = [0.0, *heads[0:4], 0.0, *heads[5:10], 0.0, heads[11]]
    assert values.tolist() == torch.tensor(expected).tolist()
    # what would follow a response is the head at its last token
    assert after.tolist() == heads[[4, 10, 12]].tolist()


def test_reference_logprobs_cover_the_response_only(tmp_path: Path) -> None:
    folder = save_llama(tmp_path, tied=False, seed=4)
    reference = ReferenceWorker(INFO, model=folder, dtype="fp32")
    found = reference.logprobs(StepShard((SAMPLES[:2], (SAMPLES[2],))), 0.7).rows
    assert [len(row) for row in found] == [3, 1, 1]
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([[3, 4, 5, 6, END]])).logits[0]
    rows = torch.log_softmax(logits / 0.7, -1)
    assert found[0] == pytest.approx([rows[1, 5].item(), rows[2, 6].item(), rows[3, END].item()], abs=1e-5)
