"""Rows 2, 3, 5, 8 and 19: what a forward pass says of a token is what plain transformers says of its sequence alone,
whatever stands beside it, and the gradient reaches everything that it should. The padding id is the end id."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cai_dist.config.engine import EngineConfig
from cai_dist.config.training import Layout
from cai_dist.data.batches import TokenBatch, pair_batch, sample_batch, sequence_batch
from cai_dist.engines.hf.rollout import HfRolloutEngine
from cai_dist.losses.language import language_loss
from cai_dist.models.load import load_causal, load_scalar
from cai_dist.types import GenerateRequest, Generation, RankInfo, SamplingParams, ScoredPair, StepShard, TokenSequence
from cai_dist.workers.forward import batch_logprobs, batch_logprobs_and_entropy, batch_values, last_token_scores
from cai_dist.workers.reward import RewardWorker
from tests.ids import prompt_of, response_of
from tests.tiny import END, VOCAB, save_llama

LAYOUTS: list[Layout] = ["packed", "padded"]
T = 0.7
pytestmark = pytest.mark.parametrize("layout", LAYOUTS)


def sample(prompt: tuple[int, ...], response: tuple[int, ...]) -> Generation:
    return Generation(prompt, response, (0.0,) * len(response), "stop", 0)


def ragged(seed: int) -> list[Generation]:
    """One to a hundred tokens, so that several rectangles are made of them; some hold the end id (which is the padding
    id too) in the middle."""
    rng = random.Random(seed)
    made = [sample((END, 5, END), (7, END)), sample((3,), (END,))]
    for longest in (14, 100, 14, 60, 40, 100):
        ids = [rng.randrange(VOCAB) for _ in range(rng.randint(longest // 2, longest))]
        cut = rng.randint(1, len(ids) - 1)
        made.append(sample(tuple(ids[:cut]), tuple(ids[cut:])))
    return made


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("causal"), tied=True, seed=0, pad=END)


@pytest.fixture(scope="module")
def scalar(causal: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("scalar")
    load_scalar(causal, "fp32", 1, "padded").hf.save_pretrained(folder)  # nothing is packed before a test does it
    return str(folder)


def ids_of(item: Generation) -> list[int]:
    return [*prompt_of(item), *response_of(item)]


@torch.no_grad()
def alone(folder: str, item: Generation, temperature: float) -> tuple[list[float], list[float]]:
    """Log-probabilities and entropies of the response tokens, from a plain pass over this sequence."""
    ids = ids_of(item)
    table = torch.log_softmax(
        AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0] / temperature, -1
    )
    rows = range(len(item.prompt_ids) - 1, len(ids) - 1)
    return [table[t, ids[t + 1]].item() for t in rows], [-(table[t].exp() * table[t]).sum().item() for t in rows]


@torch.no_grad()
def heads_alone(folder: str, ids: list[int]) -> Tensor:
    net = AutoModelForSequenceClassification.from_pretrained(folder)
    return net.score(net.model(torch.tensor([ids])).last_hidden_state)[0, :, 0]


def flat(rows: list[list[float]]) -> list[float]:
    return [number for row in rows for number in row]


def test_logprobs_and_entropies_are_those_of_the_sequence_alone(causal: str, layout: Layout) -> None:
    items = ragged(1)
    batch, model = sample_batch(items), load_causal(causal, "fp32", layout)
    with torch.no_grad():
        logprobs, entropies = batch_logprobs_and_entropy(model, batch, T)
        again = batch_logprobs(model, batch, T)
    expected = [alone(causal, item, T) for item in items]
    mask = batch.response_mask
    assert logprobs[mask].tolist() == pytest.approx(flat([row for row, _ in expected]), abs=1e-5)
    assert entropies[mask].tolist() == pytest.approx(flat([row for _, row in expected]), abs=1e-5)
    assert again[mask].tolist() == pytest.approx(logprobs[mask].tolist(), abs=1e-6)
    assert (logprobs[~mask] == 0).all() and (entropies[~mask] == 0).all()


def test_the_sampler_reports_what_a_pass_at_its_temperature_finds(causal: str, layout: Layout) -> None:
    engine = HfRolloutEngine("fp32", EngineConfig())
    engine.load(causal)
    prompts = tuple(prompt_of(item) for item in ragged(2))
    made = engine.generate(GenerateRequest(prompts, SamplingParams(9, T, 1.0, (END,)), seed=5))
    batch, model = sample_batch(made), load_causal(causal, "fp32", layout)
    with torch.no_grad():
        found = batch_logprobs(model, batch, T)[batch.response_mask].tolist()
        other = batch_logprobs(model, batch, 1.0)[batch.response_mask].tolist()
    assert found == pytest.approx(flat([list(item.logprobs) for item in made]), abs=1e-5)
    assert max(abs(a - b) for a, b in zip(found, other, strict=True)) > 0.1


def test_values_and_scores_are_those_of_the_sequence_alone(scalar: str, layout: Layout) -> None:
    items = ragged(3)
    batch, model = sample_batch(items), load_scalar(scalar, "fp32", 0, layout)
    with torch.no_grad():
        values, scores = batch_values(model, batch), last_token_scores(model, batch)
    plain = [heads_alone(scalar, ids_of(item)) for item in items]
    before = [row[len(item.prompt_ids) - 1 : -1].tolist() for row, item in zip(plain, items, strict=True)]
    assert values[batch.response_mask].tolist() == pytest.approx(flat(before), abs=1e-5)
    assert (values[batch.starts] == 0).all()
    assert scores.tolist() == pytest.approx([row[-1].item() for row in plain], abs=1e-5)


@torch.no_grad()
def score_padded(folder: str, ids: list[int], left: int, right: int) -> float:
    """The score of a sequence with the end id as padding on both sides, plain transformers."""
    net = AutoModelForSequenceClassification.from_pretrained(folder)
    row = torch.tensor([[END] * left + ids + [END] * right])
    mask = torch.tensor([[0] * left + [1] * len(ids) + [0] * right])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    hidden = net.model(input_ids=row, attention_mask=mask, position_ids=positions).last_hidden_state
    return float(net.score(hidden)[0, left + len(ids) - 1, 0])


def test_a_score_does_not_depend_on_where_padding_stands(scalar: str, layout: Layout) -> None:
    items = [sample(prompt_of(item), (*response_of(item)[:-1], END)) for item in ragged(4)]
    worker = RewardWorker(RankInfo("reward", 0, 1), model=scalar, dtype="fp32", end_id=END, layout=layout)
    found = worker.scores(StepShard((tuple(items),)))
    for left, right in ((0, 0), (3, 0), (0, 4)):
        expected = [score_padded(scalar, ids_of(item), left, right) for item in items]
        assert found == pytest.approx(expected, abs=1e-5), (left, right)
    pairs = [ScoredPair(tuple(ids_of(a)), tuple(ids_of(b)), 0.5) for a, b in zip(items[::2], items[1::2], strict=True)]
    batch = pair_batch(pairs)
    with torch.no_grad():
        a, b = batch.split(last_token_scores(load_scalar(scalar, "fp32", 0, layout), batch.tokens))
    assert a.tolist() == pytest.approx(found[::2], abs=1e-5) and b.tolist() == pytest.approx(found[1::2], abs=1e-5)


def test_what_stands_beside_a_sequence_changes_nothing(causal: str, scalar: str, layout: Layout) -> None:
    """One in the midst of eight; the others change all their tokens, and their lengths."""
    mine, policy, value = ragged(5)[4], load_causal(causal, "fp32", layout), load_scalar(scalar, "fp32", 0, layout)
    found = []
    for seed in (6, 7, 8):
        others = ragged(seed)
        batch = sample_batch([*others[:4], mine, *others[4:]])
        place = slice(int(batch.starts[4]), int(batch.last[4]) + 1)
        with torch.no_grad():
            numbers = torch.cat([batch_logprobs(policy, batch, T)[place], batch_values(value, batch)[place]])
        found.append(numbers.tolist())
    assert found[1] == pytest.approx(found[0], abs=1e-5) and found[2] == pytest.approx(found[0], abs=1e-5)


def test_no_gradient_crosses_from_one_sequence_to_another(causal: str, layout: Layout) -> None:
    """Neighbours of words that the sequence does not use: their embeddings learn nothing from it."""
    model = load_causal(causal, "fp32", layout)
    # The head is tied to the embedding and learns of every word: look at the input side alone.
    table = model.hf.get_input_embeddings()
    seen: list[Tensor] = []
    table.register_forward_hook(lambda module, args, out: (out.retain_grad(), seen.append(out))[1])
    batch = sample_batch([sample((20, 21), (22, 23, 24)), sample((30,), (31, 32)), sample((40, 41), (42,))])
    logprobs = batch_logprobs(model, batch, 1.0)
    mine = slice(int(batch.starts[1]), int(batch.last[1]) + 1)
    logprobs[mine].sum().backward()
    grads = seen[-1].grad
    assert grads is not None
    # Rows of the embedding's output that belong to the sequence, in either layout.
    moved = int((grads.flatten(0, 1).abs().amax(-1) > 0).sum())
    assert moved == 2, "the two tokens that something is predicted from"


def test_the_end_token_is_learned_and_seen_though_it_is_the_padding_too(causal: str, layout: Layout) -> None:
    model = load_causal(causal, "fp32", layout)
    sequences = [
        TokenSequence((5, 6, END), (0.0, 1.0, 1.0)),
        TokenSequence((END, 7, 8, 9, END), (0.0, 0.0, 1.0, 1.0, 1.0)),
    ]
    batch, weights = sequence_batch(sequences)
    logprobs = batch_logprobs(model, batch, 1.0, weights != 0)
    ends = batch.last
    assert batch.ids[ends].tolist() == [END, END] and (weights[ends] == 1).all()
    for row, sequence in enumerate(sequences):
        expected = alone(causal, sample(sequence.ids[:1], sequence.ids[1:]), 1.0)[0][-1]
        assert logprobs[ends[row]].item() == pytest.approx(expected, abs=1e-5)
    logprobs.retain_grad()
    language_loss(logprobs, weights, 5.0)[0].backward()
    assert logprobs.grad is not None and logprobs.grad[ends].tolist() == pytest.approx([-0.2, -0.2])
    assert batch.response_mask[ends].all()


def test_every_parameter_gets_a_gradient(causal: str, scalar: str, layout: Layout) -> None:
    batch = sample_batch(ragged(9))
    policy, value = load_causal(causal, "fp32", layout), load_scalar(scalar, "fp32", 0, layout)
    for net, numbers in ((policy, batch_logprobs(policy, batch, T)), (value, batch_values(value, batch))):
        numbers[batch.response_mask].square().sum().backward()
        still = [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
        assert still == []


def test_an_empty_micro_batch_runs_and_adds_nothing(causal: str, scalar: str, layout: Layout) -> None:
    batch: TokenBatch = sample_batch([])
    policy, value = load_causal(causal, "fp32", layout), load_scalar(scalar, "fp32", 0, layout)
    logprobs, values = batch_logprobs(policy, batch, T), batch_values(value, batch)
    assert not batch.response_mask.any() and (logprobs == 0).all()
    (logprobs.sum() + values[batch.response_mask].sum()).backward()
    for net in (policy, value):
        assert all(p.grad is None or p.grad.abs().max() == 0 for p in net.parameters())
