"""ZeRO stages, ranks and micro-batches are ways to compute, not different trainings."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cai_dist.config.training import ShardingConfig
from cai_dist.data.batches import loss_weight
from cai_dist.engines.training.learning_rate import learning_rate
from cai_dist.errors import DataError, WorkerError
from cai_dist.types import Generation, RankInfo, ScoredPair, StepShard, TokenSequence
from cai_dist.workers.reference import ReferenceWorker
from tests.integration.train_bench import OPTIMIZER, TOTAL_STEPS, PlainAdam, TrainBench, run_steps, split, use
from tests.tiny import VOCAB, save_llama

LANGUAGE = "language:LanguageWorker"
PREFERENCE = "preference:PreferenceWorker"


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("tied"), tied=True, seed=1, std=0.05)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("untied"), tied=False, seed=2, std=0.05)


def ragged_batches(steps: int, size: int, seed: int = 0) -> list[list[TokenSequence]]:
    """Batches of sequences of 2..20 tokens, some with a prompt that has no loss."""
    rng = random.Random(seed)
    batches = []
    for _ in range(steps):
        batch = []
        for _ in range(size):
            n, prompt = rng.randint(2, 20), rng.randint(0, 4)
            ids = tuple(rng.randrange(VOCAB) for _ in range(n))
            batch.append(TokenSequence(ids, tuple(float(t >= min(prompt, n - 1)) for t in range(n))))
        batches.append(batch)
    return batches


def plain_loss(net: torch.nn.Module, batch: list[TokenSequence]) -> torch.Tensor:
    """The language loss written down with nothing but torch, one token at a time."""
    total = torch.tensor(0.0)
    for item in batch:
        rows = torch.log_softmax(net(input_ids=torch.tensor([item.ids])).logits[0, :-1], -1)
        total = total - sum(rows[t - 1, item.ids[t]] * item.weights[t] for t in range(1, len(item)))
    return total / sum(sum(item.weights[1:]) for item in batch)


def plain_grad_norm(model: str, batch: list[TokenSequence]) -> float:
    net = AutoModelForCausalLM.from_pretrained(model)
    plain_loss(net, batch).backward()
    return torch.stack([p.grad.square().sum() for p in net.parameters()]).sum().sqrt().item()


def plain_losses(model: str, batches: list[list[TokenSequence]]) -> list[float]:
    """The same training with AdamW and clipping of torch's own."""
    net = AutoModelForCausalLM.from_pretrained(model)
    adam = PlainAdam(net.parameters())
    return [adam.step(plain_loss(net, batch)) for batch in batches]


def test_every_stage_and_split_trains_as_plain_torch_does(bench: TrainBench, tied: str) -> None:
    batches = ragged_batches(2, 7) * (TOTAL_STEPS // 2)
    expected = plain_losses(tied, batches)
    assert expected[-1] < expected[0]
    for ranks, zero, micro_batch in [(1, 0, 7), (1, 1, 2), (1, 2, 2), (1, 3, 3), *((2, z, 2) for z in range(4))]:
        group = bench.make(LANGUAGE, tied, ranks=ranks, zero=zero, micro_batch=micro_batch)
        metrics = run_steps(group, batches, micro_batch, loss_weight)
        assert [m["loss"] for m in metrics] == pytest.approx(expected, rel=1e-4), (ranks, zero, micro_batch)
        assert [m["lr"] for m in metrics] == [learning_rate(OPTIMIZER, s, TOTAL_STEPS) for s in range(TOTAL_STEPS)]


def test_the_gradient_is_that_of_the_sum_over_the_denominator(bench: TrainBench, untied: str) -> None:
    # Adam forgives a wrong scale and clipping hides it; the norm before clipping does not.
    batch = ragged_batches(1, 5)
    expected = plain_grad_norm(untied, batch[0])
    for ranks, zero in [(1, 0), (1, 3), *((2, z) for z in range(4))]:
        group = bench.make(LANGUAGE, untied, ranks=ranks, zero=zero, micro_batch=1)
        found = run_steps(group, batch, 1, loss_weight)[0]["grad_norm"]
        assert found == pytest.approx(expected, rel=1e-4), (ranks, zero)


@pytest.mark.parametrize("zero", range(4))
def test_three_samples_on_two_ranks_finish_and_equal_one_rank(bench: TrainBench, tied: str, zero: int) -> None:
    batches = ragged_batches(2, 1) + ragged_batches(2, 3)
    one = run_steps(bench.make(LANGUAGE, tied, ranks=1, zero=0, micro_batch=4), batches, 4, loss_weight)
    two = run_steps(bench.make(LANGUAGE, tied, ranks=2, zero=zero, micro_batch=1), batches, 1, loss_weight)
    assert [m["loss"] for m in two] == pytest.approx([m["loss"] for m in one], rel=1e-5)


@pytest.mark.parametrize("zero", range(4))
def test_resume_is_bitwise(bench: TrainBench, untied: str, zero: int, tmp_path: Path) -> None:
    batches = ragged_batches(6, 5)
    group = bench.make(LANGUAGE, untied, ranks=2, zero=zero, micro_batch=2)
    run_steps(group, batches[:3], 2, loss_weight)
    use(group, "save", str(tmp_path / "checkpoint"))
    straight = run_steps(group, batches[3:], 2, loss_weight)
    use(group, "export", str(tmp_path / "straight"))

    group = bench.make(LANGUAGE, untied, ranks=2, zero=zero, micro_batch=2)
    use(group, "load", str(tmp_path / "checkpoint"))
    resumed = run_steps(group, batches[3:], 2, loss_weight)
    use(group, "export", str(tmp_path / "resumed"))

    assert resumed == straight
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "resumed"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_of_another_sharding_is_refused(bench: TrainBench, tied: str, tmp_path: Path) -> None:
    use(bench.make(LANGUAGE, tied, ranks=2, zero=2, micro_batch=2), "save", str(tmp_path / "two"))
    with pytest.raises(WorkerError, match="CheckpointError.*zero=2.*zero=1"):
        use(bench.make(LANGUAGE, tied, ranks=2, zero=1, micro_batch=2), "load", str(tmp_path / "two"))
    with pytest.raises(WorkerError, match="CheckpointError.*incomplete"):
        use(bench.make(LANGUAGE, tied, ranks=2, zero=1, micro_batch=2), "load", str(tmp_path / "nothing"))


@pytest.mark.parametrize("zero", range(4))
@pytest.mark.parametrize("name", ["tied", "untied"])
def test_an_export_has_the_logits_that_were_trained(
    bench: TrainBench, name: str, zero: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(name)
    group = bench.make(LANGUAGE, source, ranks=2, zero=zero, micro_batch=2)
    batches = ragged_batches(2, 4)
    run_steps(group, batches, 2, loss_weight)
    use(group, "export", str(tmp_path))
    # The loss of the next step is computed before it changes anything: the exported model must have the same.
    expected = run_steps(group, batches[:1], 2, loss_weight)[0]["loss"]
    assert plain_losses(str(tmp_path), batches[:1])[0] == pytest.approx(expected, rel=1e-5)
    assert plain_losses(source, batches[:1])[0] != pytest.approx(expected, rel=1e-3)
    saved = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in saved) == (name == "untied")
    assert all(tensor.numel() > 0 for tensor in saved.values())


@pytest.mark.parametrize("zero", [0, 3])
def test_a_scalar_model_trains_whole_and_loads_with_plain_transformers(
    bench: TrainBench, tied: str, zero: int, tmp_path: Path
) -> None:
    rng = random.Random(0)
    ids = [tuple(rng.randrange(VOCAB) for _ in range(rng.randint(2, 9))) for _ in range(10)]
    pairs = [ScoredPair(ids[2 * i], ids[2 * i + 1], 0.9) for i in range(5)]
    group = bench.make(PREFERENCE, tied, ranks=2, zero=zero, micro_batch=2)
    use(group, "export", str(tmp_path / "before"))
    run_steps(group, [pairs] * 3, 2, lambda batch: float(len(batch)))
    use(group, "export", str(tmp_path / "after"))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    assert "score.weight" in after and "lm_head.weight" not in after
    assert [name for name in after if torch.equal(before[name], after[name])] == []

    scored = split(group, "pair_scores", pairs, 2)
    net = AutoModelForSequenceClassification.from_pretrained(tmp_path / "after")
    with torch.no_grad():
        plain = [net(input_ids=torch.tensor([pair.ids_a])).logits.item() for pair in pairs]
    assert [a for a, _ in scored] == pytest.approx(plain, abs=1e-5)


def test_a_scalar_model_keeps_its_head_when_loaded_again(bench: TrainBench, tied: str, tmp_path: Path) -> None:
    group = bench.make(PREFERENCE, tied, ranks=1, zero=2, micro_batch=2)
    use(group, "export", str(tmp_path / "first"))
    use(
        bench.make(PREFERENCE, str(tmp_path / "first"), ranks=1, zero=2, micro_batch=2, seed=99),
        "export",
        str(tmp_path / "again"),
    )
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_bf16_trains_in_every_stage(bench: TrainBench, tied: str) -> None:
    batch = ragged_batches(1, 4)
    for zero in range(4):
        group = bench.make(LANGUAGE, tied, ranks=2, zero=zero, micro_batch=2, dtype="bf16")
        metrics = run_steps(group, batch * TOTAL_STEPS, 2, loss_weight)
        assert metrics[-1]["loss"] < 0.97 * metrics[0]["loss"], zero


def test_a_missing_model_is_the_users_mistake(bench: TrainBench) -> None:
    with pytest.raises(DataError, match="no folder '/no/such/model'"):
        bench.make(LANGUAGE, "/no/such/model", ranks=1, zero=2, micro_batch=2)


def test_a_reference_spread_over_ranks_scores_like_a_whole_one(bench: TrainBench, untied: str) -> None:
    samples = [Generation((1, 2, 3)[:n], (4, 5, 6, 7)[:m], (), "stop", 0) for n, m in [(1, 4), (3, 1), (2, 2)]]
    whole = ReferenceWorker(RankInfo("reference", 0, 1), model=untied, dtype="fp32")
    group = bench.groups[2]
    kwargs = {"model": untied, "dtype": "fp32", "sharding": ShardingConfig(ranks=2, zero=3, micro_batch=1)}
    group.broadcast("make", "make", "reference", kwargs)
    spread = split(group, "logprobs", samples, 1, 0.7)
    for mine, expected in zip(spread, whole.logprobs(StepShard((tuple(samples),)), 0.7).rows, strict=True):
        assert mine == pytest.approx(expected, abs=1e-5)


def test_offload_without_a_compiled_optimizer_trains_the_same(bench: TrainBench, tied: str) -> None:
    batches = ragged_batches(3, 4)
    sharding = ShardingConfig(ranks=2, zero=3, micro_batch=2, ds_config="zero3_offload")
    group = bench.make(LANGUAGE, tied, ranks=2, zero=3, micro_batch=2, sharding=sharding)
    found = [metrics["loss"] for metrics in run_steps(group, batches, 2, loss_weight)]
    assert found == pytest.approx(plain_losses(tied, batches), rel=1e-4)


@pytest.mark.parametrize("zero", [0, 3])
def test_a_model_folder_with_a_temperature_and_no_sampling_is_exported(
    bench: TrainBench, zero: int, tmp_path: Path
) -> None:
    """As vicuna and old Llama 2 have it: transformers loads such a folder and refuses to save it (#29665)."""
    source = save_llama(tmp_path / "model", tied=True, seed=1)
    (tmp_path / "model" / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}')
    use(bench.make(LANGUAGE, source, ranks=2, zero=zero, micro_batch=2), "export", str(tmp_path / "out"))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert (found.do_sample, found.temperature, found.top_p, found.eos_token_id) == (True, 0.9, 0.6, 2)
