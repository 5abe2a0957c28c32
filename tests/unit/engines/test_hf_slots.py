"""Continuous batching against one prompt at a time: the same tokens, in bounded memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from cai_dist.config.engine import EngineConfig
from cai_dist.engines.hf import continuous_batching
from cai_dist.engines.hf.kv_cache import RoomyLayer
from cai_dist.engines.hf.prefill_batches import cut_by_cost, longest_first
from cai_dist.engines.hf.rollout import HfRolloutEngine
from cai_dist.types import GenerateRequest, Generation, LabelRequest, SamplingParams
from tests.ids import ids_of, prompt_of
from tests.tiny import END, VOCAB, plain_logprobs, save_llama

NEW = 20
SAMPLING = SamplingParams(NEW, 1.0, 1.0, (END, 9, 11))
"""Three of 64 tokens end a response: lengths vary from one to twenty."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("model"), tied=True, seed=0, pad=END)


@pytest.fixture(scope="module")
def engine(folder: str) -> HfRolloutEngine:
    return loaded(folder)


def loaded(folder: str, **settings: Any) -> HfRolloutEngine:
    made = HfRolloutEngine("fp32", EngineConfig(**settings))
    made.load(folder)
    return made


def limited(engine: HfRolloutEngine, **settings: Any) -> HfRolloutEngine:
    """The same model under other limits."""
    made = HfRolloutEngine("fp32", EngineConfig(**settings))
    made._model, made._status, made.weight_version = engine._model, "ready", 0
    return made


def request_of(lengths: list[int], seed: int = 3, sampling: SamplingParams = SAMPLING) -> GenerateRequest:
    rng = random.Random(seed)
    return GenerateRequest(tuple(tuple(rng.randrange(VOCAB) for _ in range(n)) for n in lengths), sampling, seed)


def same(found: list[Generation], expected: list[Generation]) -> None:
    assert [replace(s, logprobs=()) for s in found] == [replace(s, logprobs=()) for s in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=14),
    rows=st.integers(1, 6),
    tokens=st.none() | st.integers(1, 400),
    seed=st.integers(0, 1000),
)
def test_taking_each_others_place_changes_no_token(
    engine: HfRolloutEngine, lengths: list[int], rows: int, tokens: int | None, seed: int
) -> None:
    request = request_of(lengths, seed)
    expected = limited(engine, max_rows=1).generate(request)
    same(limited(engine, max_rows=rows, max_tokens=tokens).generate(request), expected)
    assert [prompt_of(s) for s in expected] == list(request.prompts)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_one_prompt_at_a_time_is_the_same_as_many(engine: HfRolloutEngine, temperature: float) -> None:
    rng = random.Random(1)
    request = request_of([rng.randint(1, 40) for _ in range(40)], 7, replace(SAMPLING, temperature=temperature))
    made = limited(engine, max_rows=5).generate(request)
    assert len({len(sample.response_ids) for sample in made}) > 5 and {s.engine for s in made} == {"hf"}
    for i in (0, 1, 17, 39):
        alone = replace(request, prompts=(request.prompts[i],), first=i)
        same(limited(engine, max_rows=1).generate(alone), [made[i]])
    same(made, limited(engine, max_rows=1).generate(request))


@pytest.mark.parametrize("every", [3, 7, 50])
def test_when_the_host_looks_changes_no_token(
    engine: HfRolloutEngine, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    request = request_of([9, 3, 14, 1, 6, 6, 11, 2])
    expected = limited(engine, max_rows=3).generate(request)
    monkeypatch.setattr(continuous_batching, "LOOK_EVERY", {"cpu": every})
    same(limited(engine, max_rows=3).generate(request), expected)


def test_logprobs_are_those_of_a_pass_over_the_whole_sequence(engine: HfRolloutEngine, folder: str) -> None:
    rng = random.Random(2)
    net = AutoModelForCausalLM.from_pretrained(folder)
    request = request_of([rng.randint(1, 30) for _ in range(30)], 5, replace(SAMPLING, temperature=0.7))
    for sample in limited(engine, max_rows=4).generate(request):
        ids = torch.tensor([ids_of(sample)])
        with torch.no_grad():
            found = plain_logprobs(net(input_ids=ids).logits[0], ids[0], 0.7)[len(sample.prompt_ids) :]
        assert sample.logprobs == pytest.approx(found.tolist(), abs=1e-4)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int, int]]]:
    """(rows, columns, allocated columns) of a layer after every token."""
    found: list[tuple[int, int, int]] = []
    update = RoomyLayer.update

    def spy(layer: RoomyLayer, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        states = update(layer, keys, values, *args, **kwargs)
        if keys.shape[-2] == 1:
            found.append((layer.allocated[0], states[0].shape[-2], layer.allocated[1]))
        return states

    monkeypatch.setattr(RoomyLayer, "update", spy)
    return found


@pytest.mark.slow
def test_the_cache_stays_as_wide_as_one_response(engine: HfRolloutEngine, seen: list[tuple[int, int, int]]) -> None:
    limited(engine, max_rows=4).generate(request_of([12] * 100))
    assert max(rows for rows, _, _ in seen) == 4
    assert max(columns for _, columns, _ in seen) <= 12 + NEW
    assert max(allocated for _, _, allocated in seen) <= 12 + 2 * NEW
    # Few rows are free at any time: 100 responses in places of four take little more than a quarter of their tokens.
    tokens = sum(len(s.response_ids) for s in limited(engine, max_rows=4).generate(request_of([12] * 100)))
    assert len(seen) / 2 / 2 < 1.15 * tokens / 4 + NEW  # two layers, two runs


@pytest.mark.parametrize("budget", [60, 130, 300, 1000])
def test_the_token_budget_holds(engine: HfRolloutEngine, seen: list[tuple[int, int, int]], budget: int) -> None:
    rng = random.Random(4)
    request = request_of([rng.randint(1, 30) for _ in range(40)])
    limited(engine, max_rows=8, max_tokens=budget).generate(request)
    assert all(rows * allocated <= budget for rows, _, allocated in seen if rows > 1)
    # A row is a prompt and 40 columns; 300 are six rows once prompts are of 10 tokens at most, seven only below 3.
    assert max(rows for rows, _, _ in seen) == {60: 1, 130: 3, 300: 6, 1000: 8}[budget]


def test_layers_that_slide_are_served_without_refill(
    tmp_path_factory: pytest.TempPathFactory, seen: list[tuple[int, int, int]]
) -> None:
    config = MistralConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=6, initializer_range=0.3, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("mistral"))
    MistralForCausalLM(config).save_pretrained(folder)
    request = request_of([1, 3, 9, 15, 4, 8, 2, 12, 7])
    sliding = loaded(folder)
    expected = limited(sliding, max_rows=1).generate(request)
    for limits in ({"max_rows": 4}, {"max_rows": 4, "max_tokens": 150}, {}):
        same(limited(sliding, **limits).generate(request), expected)
    assert not seen
    net = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([ids_of(expected[3])])
    with torch.no_grad():
        found = plain_logprobs(net(input_ids=ids).logits[0], ids[0])[len(expected[3].prompt_ids) :]
    assert expected[3].logprobs == pytest.approx(found.tolist(), abs=1e-4)


def test_what_stood_in_a_place_before_does_not_matter() -> None:
    layer = RoomyLayer(4)
    rows = torch.tensor([0, 1])
    nan = torch.full((2, 1, 3, 2), torch.nan)
    layer.place(nan, nan, rows, 2, 3)
    new = torch.ones(1, 1, 2, 2)
    layer.place(new, 2 * new, rows[1:], 3, 0)
    assert layer.keys.shape == (3, 1, 3, 2)
    assert layer.keys[1, 0, :, 0].tolist() == [0, 1, 1] and layer.values[1, 0, :, 0].tolist() == [0, 2, 2]
    assert layer.keys[2].eq(0).all() and layer.keys[0].isnan().all()


def test_columns_are_dropped_without_a_copy_and_moved_when_there_is_no_room() -> None:
    layer = RoomyLayer(2)
    numbers = torch.arange(5.0).reshape(1, 1, 5, 1)
    layer.place(numbers, numbers, torch.tensor([0]), 1, 5)
    where = layer.keys.data_ptr()
    layer.drop_columns(3)
    assert layer.keys.flatten().tolist() == [3, 4] and layer.keys.data_ptr() == where + 3 * 4
    for n in (5.0, 6.0, 7.0):
        layer.update(torch.full((1, 1, 1, 1), n), torch.full((1, 1, 1, 1), n))
    assert layer.values.flatten().tolist() == [3, 4, 5, 6, 7] and layer.allocated == (1, 7)


def test_batches_are_cut_by_rows_tokens_and_padding() -> None:
    assert longest_first([(1,), (1, 2), (3,), (4, 5)]) == [1, 3, 0, 2]
    assert list(cut_by_cost([5, 5, 5, 5], 3, 100)) == [slice(0, 3), slice(3, 4)]
    assert list(cut_by_cost([5, 5, 5, 5], 9, 10)) == [slice(0, 2), slice(2, 4)]
    assert list(cut_by_cost([50, 5], 9, 10)) == [slice(0, 1), slice(1, 2)]  # one is always taken
    # 900 + 100: 800 tokens of padding over 1000 real ones; 10 + 1: nine are not worth a pass.
    assert list(cut_by_cost([900, 100, 100], 9, 9999)) == [slice(0, 1), slice(1, 3)]
    assert list(cut_by_cost([10, 1], 9, 9999)) == [slice(0, 2)]
    assert list(cut_by_cost([], 9, 9999)) == []


def test_labels_in_small_batches_score_the_same(engine: HfRolloutEngine) -> None:
    rng = random.Random(6)
    labels = LabelRequest(request_of([rng.randint(1, 30) for _ in range(25)]).prompts, ((4,), (5, 6), (5, 7, 8)))
    expected = engine.score_labels(labels)
    for limits in ({"max_rows": 1}, {"max_rows": 7}, {"max_tokens": 64}):
        for found, row in zip(limited(engine, **limits).score_labels(labels), expected, strict=True):
            assert found == pytest.approx(row, abs=1e-4)
