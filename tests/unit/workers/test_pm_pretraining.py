"""Preference-model pretraining in this process: its loss against one written down with plain transformers, and what
becomes of the language head."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cai_dist.config.training import ShardingConfig
from cai_dist.data.schedule import plan_items
from cai_dist.models.load import load_causal, load_scalar, load_scalar_with_language
from cai_dist.models.scalar import ScalarHeadModel
from cai_dist.types import LabelledPair
from cai_dist.workers.preference import PretrainingWorker
from tests.tiny import END, VOCAB, plain_logprobs, save_llama

WEIGHT = 0.5


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("untied"), tied=False, seed=4)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("tied"), tied=True, seed=5)


def pairs(count: int = 5) -> list[LabelledPair]:
    """Ragged: prompts of 2..4 tokens, a label token, answers of 1..5 tokens and the end token."""
    rng = random.Random(3)
    made = []
    for n in range(count):
        prompt = tuple(rng.randrange(3, VOCAB) for _ in range(2 + n % 3))
        answer = (*(rng.randrange(3, VOCAB) for _ in range(1 + n)), END)
        made.append(
            LabelledPair((*prompt, 10, *answer), (*prompt, 11, *answer), 1.0, "human", len(prompt), len(prompt) + 1)
        )
    return made


def worker(weight: float) -> PretrainingWorker:
    """One without an engine: its loss needs none."""
    made = PretrainingWorker.__new__(PretrainingWorker)
    made._language_weight = weight
    made.engine = SimpleNamespace(device="cpu")  # type: ignore[assignment]
    return made


def by_hand(model: ScalarHeadModel, source: str, items: list[LabelledPair], weight: float) -> float:
    causal = AutoModelForCausalLM.from_pretrained(source)
    total = 0.0
    for item in items:
        scores = []
        for ids in (item.ids_a, item.ids_b):
            states = model.hf.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            scores.append(model.hf.score(states)[-1].item())
        total += -torch.nn.functional.logsigmoid(torch.tensor(scores[0] - scores[1])).item()
        ids = torch.tensor(item.ids_a)
        logprobs = plain_logprobs(causal(ids[None]).logits[0], ids)[item.answer_start :]
        total += weight * -logprobs.mean().item()
    return total / len(items)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("source", ["tied", "untied"])
def test_the_loss_is_the_one_written_down(source: str, layout: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(source)
    model = load_scalar_with_language(folder, "fp32", 1, layout)
    plain = load_scalar(folder, "fp32", 1, "padded")
    with torch.no_grad():
        loss, metrics = worker(WEIGHT)._loss(model, pairs(), float(len(pairs())))
        assert loss.item() == pytest.approx(by_hand(plain, folder, pairs(), WEIGHT), rel=1e-4)
    assert loss.item() == pytest.approx(
        metrics["ranking_loss"].item() + WEIGHT * metrics["language_loss"].item(), rel=1e-6
    )


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_splits_change_neither_loss_nor_gradient(tied: str, size: int, ranks: int) -> None:
    def whole(ranks: int, size: int) -> tuple[float, dict[str, torch.Tensor]]:
        model = load_scalar_with_language(tied, "fp32", 1).double()
        total = 0.0
        plan = plan_items(pairs(), ranks, ShardingConfig(micro_batch=size), "packed")
        for micro_batches in plan.split(pairs()):
            for part in micro_batches:
                loss, _ = worker(WEIGHT)._loss(model, part, float(len(pairs())))
                loss.backward()
                total += loss.item()
        return total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    loss, gradients = whole(ranks, size)
    expected, expected_gradients = whole(1, 100)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert gradients.keys() == expected_gradients.keys() and gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-7)


def test_an_empty_micro_batch_costs_nothing_and_has_the_same_metrics(untied: str) -> None:
    model = load_scalar_with_language(untied, "fp32", 1)
    loss, metrics = worker(WEIGHT)._loss(model, (), 4.0)
    loss.backward()
    assert loss.item() == 0.0 and {m.item() for m in metrics.values()} == {0.0}
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert metrics.keys() == worker(WEIGHT)._loss(model, pairs(), 5.0)[1].keys()


def test_the_loss_reads_the_better_answer_alone(untied: str) -> None:
    """Another end of side B changes the ranking and not the language loss; another label of A is not learned."""
    model = load_scalar_with_language(untied, "fp32", 1)
    [one] = pairs(1)
    other = LabelledPair(one.ids_a, (*one.ids_b[:-1], 7, END), 1.0, "human", one.prompt_tokens, one.answer_start)
    with torch.no_grad():
        (_, before), (_, after) = (worker(WEIGHT)._loss(model, (pair,), 1.0) for pair in (one, other))
    assert after["language_loss"].item() == pytest.approx(before["language_loss"].item(), rel=1e-5)
    assert after["ranking_loss"].item() != pytest.approx(before["ranking_loss"].item(), rel=1e-3)


def test_without_a_language_loss_there_is_no_language_head(untied: str) -> None:
    made = worker(0.0)
    model = made.build(untied, "fp32", 1, "packed", None)
    assert model.language is None
    with torch.no_grad():
        loss, metrics = made._loss(model, pairs(), 5.0)
    assert "language_loss" not in metrics and loss.item() > 0
    assert worker(1.0).build(untied, "fp32", 1, "packed", None).language is not None


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_the_head_is_the_causal_models_and_is_not_part_of_what_is_saved(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    model, causal = load_scalar_with_language(folder, "fp32", 1), load_causal(folder, "fp32")
    assert model.language is not None
    shared = model.language.weight is model.hf.get_input_embeddings().weight
    assert shared == (name == "tied")
    assert torch.equal(model.language.weight, causal.hf.get_output_embeddings().weight)
    # Part of the module, and so of its checkpoints; not of the model inside.
    assert "language.weight" in model.state_dict()
    model.hf.save_pretrained(tmp_path)
    assert [key for key in load_file(tmp_path / "model.safetensors") if "lm_head" in key or "language" in key] == []
    ids, lengths = torch.tensor([5, 6, 7, 8, 9]), torch.tensor([3, 2])
    wanted = torch.tensor([True, True, True, False, True])
    with torch.no_grad():
        _, logprobs = model(ids, lengths, wanted)
        expected, _ = causal(ids, lengths, wanted, 1.0, False)
        assert torch.equal(logprobs, expected)
        assert torch.equal(model(ids, lengths), load_scalar(folder, "fp32", 1)(ids, lengths))
