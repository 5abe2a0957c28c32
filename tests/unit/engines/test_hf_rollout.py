"""The sampling loop against plain transformers, on small random models."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from cai_dist.config.engine import EngineConfig
from cai_dist.engines.hf.rollout import HfRolloutEngine
from cai_dist.errors import DataError, StaleEngineError
from cai_dist.types import GenerateRequest, LabelRequest, SamplingParams
from tests.ids import ids_of, prompt_of, response_of
from tests.tiny import END, VOCAB, plain_logprobs, save_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its padding id is its end id: nothing may follow from ids."""
    return save_llama(tmp_path_factory.mktemp("model"), tied=True, seed=0, pad=END)


@pytest.fixture(scope="module")
def engine(folder: str) -> HfRolloutEngine:
    made = HfRolloutEngine("fp32", EngineConfig())
    made.load(folder)
    return made


@pytest.fixture(scope="module")
def request_(folder: str) -> GenerateRequest:
    rng = random.Random(0)
    prompts = [tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, 15))) for _ in range(20)]
    prompts[3] = (END, 5, END)  # the end id inside a prompt is a token like any other
    return GenerateRequest(tuple(prompts), SamplingParams(24, 0.7, 1.0, (END, 9)), seed=11)


def test_recomputed_logprobs_equal_the_samplers(
    engine: HfRolloutEngine, folder: str, request_: GenerateRequest
) -> None:
    net = AutoModelForCausalLM.from_pretrained(folder)
    for sample in engine.generate(request_):
        ids = torch.tensor([ids_of(sample)])
        with torch.no_grad():
            found = plain_logprobs(net(input_ids=ids).logits[0], ids[0], 0.7)[len(sample.prompt_ids) :]
        assert sample.logprobs == pytest.approx(found.tolist(), abs=1e-5)


def test_a_response_ends_at_its_first_stop_id(engine: HfRolloutEngine, request_: GenerateRequest) -> None:
    samples = engine.generate(request_)
    assert {sample.finish for sample in samples} == {"stop", "length"}
    for sample in samples:
        stops = [i for i, token in enumerate(response_of(sample)) if token in (END, 9)]
        if sample.finish == "stop":
            assert stops == [len(sample.response_ids) - 1]
        else:
            assert stops == [] and len(sample.response_ids) == 24
        assert len(sample.logprobs) == len(sample.response_ids)


def test_the_seed_alone_drives_sampling(engine: HfRolloutEngine, folder: str, request_: GenerateRequest) -> None:
    first = engine.generate(request_)
    torch.manual_seed(123)
    assert engine.generate(request_) == first
    cut = HfRolloutEngine("fp32", EngineConfig(max_rows=3))  # other batches, other padding
    cut.load(folder)
    assert [response_of(s) for s in cut.generate(request_)] == [response_of(s) for s in first]
    assert engine.generate(replace(request_, seed=12)) != first


def test_a_prompt_is_answered_whatever_its_neighbours_are(engine: HfRolloutEngine, request_: GenerateRequest) -> None:
    whole = engine.generate(request_)
    head = engine.generate(replace(request_, prompts=request_.prompts[:2]))
    assert [response_of(s) for s in head] == [response_of(s) for s in whole[:2]]
    assert [prompt_of(s) for s in whole] == list(request_.prompts)


def test_greedy_is_an_argmax_loop(engine: HfRolloutEngine, folder: str, request_: GenerateRequest) -> None:
    net = AutoModelForCausalLM.from_pretrained(folder)
    greedy = replace(request_, sampling=SamplingParams(10, 0.0, 1.0, (END,)))
    for sample in engine.generate(greedy):
        ids = list(prompt_of(sample))
        for _ in range(10):
            with torch.no_grad():
                ids.append(int(net(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == END:
                break
        assert tuple(ids[len(sample.prompt_ids) :]) == response_of(sample)
        assert set(sample.logprobs) == {0.0}


def test_top_p_logprobs_are_those_of_the_nucleus(engine: HfRolloutEngine, request_: GenerateRequest) -> None:
    # With the same uniforms the first draws may differ, but every log-prob must be at least that of the full softmax.
    sampling = SamplingParams(1, 1.0, 0.5, ())
    for sample in engine.generate(replace(request_, sampling=sampling)):
        full = engine.score_labels(LabelRequest((prompt_of(sample),), (response_of(sample),)))[0][0]
        assert full < sample.logprobs[0] <= 0
        assert sample.logprobs[0] <= full - torch.log(torch.tensor(0.5)).item() + 1e-5


def test_labels_of_one_and_of_several_tokens(engine: HfRolloutEngine, folder: str, request_: GenerateRequest) -> None:
    net = AutoModelForCausalLM.from_pretrained(folder)
    labels = ((4, 5, 6), (4, 7, 6), (8,), (9,))
    for prompt, scores in zip(
        request_.prompts, engine.score_labels(LabelRequest(request_.prompts, labels)), strict=True
    ):
        for label, score in zip(labels, scores, strict=True):
            ids = torch.tensor([prompt + label])
            with torch.no_grad():
                expected = plain_logprobs(net(input_ids=ids).logits[0], ids[0])[len(prompt) :].sum()
            assert score == pytest.approx(expected.item(), abs=1e-4)


def test_what_cannot_be_served_is_refused(folder: str) -> None:
    engine = HfRolloutEngine("fp32", EngineConfig())
    request = GenerateRequest(((3,),), SamplingParams(1), 0)
    with pytest.raises(StaleEngineError, match="no model is loaded"):
        engine.generate(request)
    engine.load(folder)
    with pytest.raises(DataError, match="no tokens"):
        engine.generate(replace(request, prompts=((3,), ())))
    assert engine.generate(replace(request, prompts=())) == []
    waiting = HfRolloutEngine("fp32", EngineConfig(), require_sync=True)
    waiting.load(folder)
    with pytest.raises(StaleEngineError, match="waits for a finished weight transfer"):
        waiting.generate(request)
    with pytest.raises(StaleEngineError):
        waiting.score_labels(LabelRequest(((3,),), ((4,),)))
