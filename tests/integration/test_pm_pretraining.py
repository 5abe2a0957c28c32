"""Preference-model pretraining on real ranks: the language head is trained and checkpointed with the rest, under every
way to shard it, and is no part of what comes out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from cai_dist.types import LabelledPair
from tests.integration.train_bench import TrainBench, run_steps, use
from tests.tiny import END, VOCAB, save_llama

PRETRAINING = "preference:PretrainingWorker"


def batches(steps: int, size: int) -> list[list[LabelledPair]]:
    """Ragged pairs, five of them over two ranks: one rank has an empty micro-batch in every step."""
    rng = random.Random(0)
    made = []
    for _ in range(steps):
        batch = []
        for _ in range(size):
            prompt = tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 4)))
            answer = (*(rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 9))), END)
            start = len(prompt) + 1
            batch.append(LabelledPair((*prompt, 10, *answer), (*prompt, 11, *answer), 1.0, "human", start - 1, start))
        made.append(batch)
    return made


def count(batch: list[LabelledPair]) -> float:
    return float(len(batch))


@pytest.mark.parametrize(("zero", "tied"), [(0, False), (2, True), (3, False), (3, True)])
def test_it_resumes_bit_for_bit_and_exports_a_plain_scalar_model(
    bench: TrainBench, tmp_path: Path, zero: int, tied: bool
) -> None:
    source = save_llama(tmp_path / "source", tied=tied, seed=1, std=0.05)
    data = batches(6, 5)

    def make():
        return bench.make(PRETRAINING, source, ranks=2, zero=zero, micro_batch=2, language_weight=1.0)

    group = make()
    use(group, "export", str(tmp_path / "before"))
    whole = run_steps(group, data, 2, count)
    use(group, "export", str(tmp_path / "straight"))

    group = make()
    run_steps(group, data[:3], 2, count)
    use(group, "save", str(tmp_path / "checkpoint"))
    group = make()
    use(group, "load", str(tmp_path / "checkpoint"))
    # The language loss of the next step shows the head: it is what it was, not what the source has.
    assert run_steps(group, data[3:], 2, count) == whole[3:]
    use(group, "export", str(tmp_path / "resumed"))

    before, first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("before", "straight", "resumed")
    )
    assert first.keys() == second.keys() == before.keys()
    assert "score.weight" in first and not [name for name in first if "lm_head" in name or "language" in name]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [name for name in first if torch.equal(first[name], before[name])] == []
    net = AutoModelForSequenceClassification.from_pretrained(tmp_path / "straight")
    assert net(input_ids=torch.tensor([[5, 6, END]])).logits.isfinite().all()


def test_the_head_of_an_untied_model_is_trained(bench: TrainBench, tmp_path: Path) -> None:
    """With the trunk's last norm at work on the same states, only a head that moves learns one token for everything."""
    source = save_llama(tmp_path / "source", tied=False, seed=1, std=0.05)
    data = batches(1, 4) * 10
    group = bench.make(PRETRAINING, source, ranks=2, zero=3, micro_batch=2, language_weight=1.0)
    found = run_steps(group, data, 2, count)
    assert found[-1]["language_loss"] < 0.9 * found[0]["language_loss"]
    use(group, "save", str(tmp_path / "checkpoint"))


def test_shards_and_ranks_are_ways_to_compute(bench: TrainBench, tmp_path: Path) -> None:
    source = save_llama(tmp_path / "source", tied=True, seed=1, std=0.05)
    data = batches(3, 5)
    found = []
    for ranks, zero, micro in ((1, 0, 8), (2, 3, 1)):
        group = bench.make(PRETRAINING, source, ranks=ranks, zero=zero, micro_batch=micro, language_weight=0.5)
        found.append(run_steps(group, data, micro, count))
    for one, other in zip(*found, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)
