"""The vLLM engine against the Hugging Face engine and plain transformers: samples, log-probabilities, labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from cai_dist.config.engine import EngineConfig
from cai_dist.engines.factory import build_rollout_engine
from cai_dist.errors import DataError, StaleEngineError
from cai_dist.types import GenerateRequest, LabelRequest, SamplingParams
from tests.ids import prompt_of, response_of
from tests.vllm.lab import END, VLLM, VOCAB, random_prompts, save_model, send, worst

PROMPTS = random_prompts(64)
GREEDY = GenerateRequest(PROMPTS, SamplingParams(24, 0.0, 1.0, (END,)), seed=0)
LABELS = ((4, 5, 6), (4, 5, 7), (4, 8), (9,), (10,))


@dataclass
class Pair:
    """One vLLM engine, and two models of its shape: it was loaded with the first."""

    vllm: Any
    first: str
    second: str
    others: list[Any] = field(default_factory=list)
    """Engines beside it. One that ends takes the process groups of vLLM with it: all end together."""


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folders = [save_model(tmp_path_factory.mktemp("model"), tied=request.param, seed=seed) for seed in (0, 1)]
    engine = build_rollout_engine(VLLM, "fp32")
    engine.load(folders[0])
    made = Pair(engine, *folders)
    yield made
    for one in (*made.others, engine):
        one._stop()


def hf(folder: str) -> Any:
    engine = build_rollout_engine(EngineConfig(), "fp32")
    engine.load(folder)
    return engine


def assert_same_as_hf(vllm: Any, folder: str) -> None:
    """Greedy: the same tokens on 95 % of the prompts at least; the same log-probabilities of eight answers."""
    reference = hf(folder)
    expected, found = reference.generate(GREEDY), vllm.generate(GREEDY)
    same = sum(response_of(a) == response_of(b) for a, b in zip(expected, found, strict=True))
    gaps = []
    for sample in expected[:8]:
        asked = LabelRequest((prompt_of(sample),), (response_of(sample),))
        gaps.append(abs(reference.score_labels(asked)[0][0] - vllm.score_labels(asked)[0][0]))
    print(
        f"greedy: {same} of {len(PROMPTS)} the same; log-probability of a response differs by {max(gaps):.1e} at most"
    )
    assert same >= 0.95 * len(PROMPTS)
    assert max(gaps) < 1e-3
    assert all(sample.engine == "vllm" and not any(sample.logprobs) for sample in found)


def test_it_answers_as_hf_does_also_after_a_large_change_of_weights(pair: Pair) -> None:
    assert_same_as_hf(pair.vllm, pair.first)
    before = pair.vllm.generate(GREEDY)
    send(pair.vllm, pair.second, 1)
    assert_same_as_hf(pair.vllm, pair.second)
    changed = sum(response_of(a) != response_of(b) for a, b in zip(before, pair.vllm.generate(GREEDY), strict=True))
    assert changed > 0.9 * len(PROMPTS)
    send(pair.vllm, pair.first, 2)
    assert pair.vllm.generate(GREEDY)[0].weight_version == pair.vllm.weight_version == 2
    assert_same_as_hf(pair.vllm, pair.first)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_logprobs_are_those_of_the_distribution_sampled_from(pair: Pair, temperature: float, top_p: float) -> None:
    sampling = SamplingParams(16, temperature, top_p, (END, 9))
    samples = pair.vllm.generate(GenerateRequest(PROMPTS, sampling, seed=5))
    assert worst(pair.first, samples, temperature, top_p) < 1e-4


def test_a_response_ends_at_its_first_stop_id_and_at_no_other(pair: Pair) -> None:
    """The model's own end id is a token like any other where it is not asked for."""
    for stops in ((END, 9), (9,), ()):
        samples = pair.vllm.generate(GenerateRequest(PROMPTS, SamplingParams(24, 1.0, 1.0, stops), seed=3))
        for sample in samples:
            ends = [i for i, token in enumerate(response_of(sample)) if token in stops]
            if sample.finish == "stop":
                assert ends == [len(sample.response_ids) - 1]
            else:
                assert ends == [] and len(sample.response_ids) == 24
        assert {sample.finish for sample in samples} == ({"stop", "length"} if stops else {"length"})
        if stops == ():
            assert any(END in response_of(sample) for sample in samples)


def test_labels_of_one_and_of_several_tokens_score_as_with_hf(pair: Pair) -> None:
    asked = LabelRequest(PROMPTS, LABELS)
    for own, expected in zip(pair.vllm.score_labels(asked), hf(pair.first).score_labels(asked), strict=True):
        assert own == pytest.approx(expected, abs=1e-4)
    many = LabelRequest(PROMPTS[:2], tuple((token,) for token in range(VOCAB)))
    for own, expected in zip(pair.vllm.score_labels(many), hf(pair.first).score_labels(many), strict=True):
        assert own == pytest.approx(expected, abs=1e-4)


def test_the_request_alone_drives_sampling(pair: Pair) -> None:
    request = GenerateRequest(PROMPTS[:20], SamplingParams(16, 1.0, 0.9, (END,)), seed=11)
    first = pair.vllm.generate(request)
    assert pair.vllm.generate(request) == first
    assert pair.vllm.generate(replace(request, seed=12)) != first
    head = pair.vllm.generate(replace(request, prompts=request.prompts[:3]))
    assert [response_of(s) for s in head] == [response_of(s) for s in first[:3]]
    tail = pair.vllm.generate(replace(request, prompts=request.prompts[3:9], first=3))
    assert [response_of(s) for s in tail] == [response_of(s) for s in first[3:9]]
    other = build_rollout_engine(replace_rows(3), "fp32")  # another engine, other batches
    pair.others.append(other)
    other.load(pair.first)
    assert [response_of(s) for s in other.generate(request)] == [response_of(s) for s in first]
    twice = pair.vllm.generate(replace(request, prompts=(PROMPTS[0],) * 8))
    assert len({response_of(s) for s in twice}) > 1  # rows of one prompt are samples of their own


def replace_rows(rows: int) -> EngineConfig:
    return VLLM.model_copy(update={"max_rows": rows})


def test_what_cannot_be_served_is_refused(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> None:
    engine = build_rollout_engine(VLLM, "fp32")
    with pytest.raises(StaleEngineError, match="no model is loaded"):
        engine.generate(GREEDY)
    with pytest.raises(DataError, match="no tokens"):
        pair.vllm.generate(replace(GREEDY, prompts=((3,), ())))
    with pytest.raises(DataError, match="500 tokens with 24 new ones is longer than the 512"):
        pair.vllm.generate(replace(GREEDY, prompts=((3,) * 500,)))
    assert pair.vllm.generate(replace(GREEDY, prompts=())) == []
    narrow = save_model(tmp_path_factory.mktemp("narrow"), tied=True, seed=0, heads=4)
    with pytest.raises(DataError, match="attention heads have 16 dimensions; on CPU vLLM needs at least 32"):
        engine.load(narrow)
    with pytest.raises(DataError):
        engine.load(str(tmp_path_factory.mktemp("empty")))
    assert engine.status() == "empty"


def test_more_tokens_than_one_pass_takes(pair: Pair) -> None:
    """Prompts of together more tokens than vLLM reads at once: no row is read in parts, and each is sampled by its own
    seed, so that a row's answer is the one that it gets where it is the whole first half of a request."""
    long = random_prompts(96, seed=3, longest=400)
    assert sum(map(len, long)) > 2 * 8192
    request = GenerateRequest(long, SamplingParams(8), seed=1)
    half = replace(request, prompts=long[:48])
    found = pair.vllm.generate(request)
    assert [len(sample.response_ids) for sample in found] == [8] * 96
    assert [response_of(sample) for sample in found[:48]] == [
        response_of(sample) for sample in pair.vllm.generate(half)
    ]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = Path(save_model(tmp_path, tied=False, seed=0))
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    engine = build_rollout_engine(VLLM, "fp32")
    with pytest.raises(DataError, match="not finite: .* model.norm.weight"):
        engine.load(str(folder))
    assert engine.status() == "empty"
