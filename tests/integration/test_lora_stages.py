"""Adapters in the stages that learn from labels, on real ranks: what moves, resume to the last bit, the reference of
DPO without a second model, and folders that later stages load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cai_dist.cluster.group import WorkerGroup
from cai_dist.config.training import LoraConfig
from cai_dist.data.batches import loss_weight
from cai_dist.models.load import load_hf_causal, load_scalar
from cai_dist.types import DpoPair, RankInfo
from cai_dist.workers.reward import RewardWorker
from tests.integration.test_dpo import both, ragged_pairs
from tests.integration.test_pm_pretraining import batches, count
from tests.integration.test_zero import plain_loss, ragged_batches
from tests.integration.train_bench import TrainBench, run_steps, split, use
from tests.tiny import END, save_llama

LORA = LoraConfig(rank=2, alpha=8.0, save="adapter")
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("language:LanguageWorker", {}),
    "preference": ("preference:PreferenceWorker", {"margin": 0.5}),
    "dpo": ("dpo:DpoWorker", {"loss": "dpo", "beta": 0.4}),
    "pm_pretraining": ("preference:PretrainingWorker", {"language_weight": 1.0}),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("base"), tied=False, seed=2, std=0.05)


def make(bench: TrainBench, stage: str, model: str, ranks: int, zero: int, **extra: Any) -> WorkerGroup:
    """A fresh worker of a stage; of ZeRO-3 one that also cuts what is small, and so is born cut."""
    kind, settings = KINDS[stage]
    return bench.make(kind, model, ranks=ranks, zero=zero, micro_batch=2, lora=LORA, **(settings | extra))


def data(stage: str) -> tuple[list[list[Any]], Any]:
    """Three batches of five, twice; the last micro-batch of one rank is empty."""
    if stage == "sft":
        return ragged_batches(3, 5) * 2, loss_weight
    if stage == "pm_pretraining":
        return batches(3, 5) * 2, count
    pairs = [ragged_pairs(5, seed=seed) for seed in range(3)]
    if stage == "dpo":
        pairs = [[DpoPair(p.ids_a, p.ids_b, p.p_a, p.source, p.prompt_tokens, -9.0, -8.0) for p in b] for b in pairs]
    return pairs * 2, count


def raw(group: WorkerGroup) -> dict[str, tuple[np.ndarray, bool]]:
    found: dict[str, tuple[np.ndarray, bool]] = group.broadcast("raw", "raw")[0]
    return found


@pytest.mark.parametrize("stage", list(KINDS))
def test_two_ranks_are_one_and_a_resumed_training_is_the_straight_one(
    bench: TrainBench, base: str, stage: str, tmp_path: Path
) -> None:
    steps, denominator = data(stage)
    group = make(bench, stage, base, 1, 0)
    before = raw(group)
    expected = run_steps(group, steps, 2, denominator)
    after = raw(group)
    head = {"score.weight"} if stage in ("preference", "pm_pretraining") else set()
    moved = {name for name in before if not np.array_equal(before[name][0], after[name][0])}
    assert moved == {name for name in before if ".lora_" in name} | head
    for zero in (0, 1, 2, 3) if stage == "sft" else (2, 3):
        group = make(bench, stage, base, 2, zero)
        straight = run_steps(group, steps, 2, denominator)
        assert [m["loss"] for m in straight] == pytest.approx([m["loss"] for m in expected], rel=1e-4)
        group = make(bench, stage, base, 2, zero)
        run_steps(group, steps[:3], 2, denominator)
        use(group, "save", str(tmp_path / f"{zero}"))
        group = make(bench, stage, base, 2, zero, seed=99)
        use(group, "load", str(tmp_path / f"{zero}"))
        assert run_steps(group, steps[3:], 2, denominator) == straight[3:], zero
        written = sum(path.stat().st_size for path in (tmp_path / f"{zero}").rglob("*.pt"))
        assert written < (Path(base) / "model.safetensors").stat().st_size / 2, "frozen weights are not written"


@pytest.mark.parametrize("zero", [2, 3])
def test_a_stage_goes_on_from_the_adapter_of_the_one_before(
    bench: TrainBench, base: str, zero: int, tmp_path: Path
) -> None:
    """SFT, then DPO and the preference model on its adapter, then a reward model on that: no whole model anywhere."""
    sl, aligned, preference = (str(tmp_path / name) for name in ("sl", "dpo", "preference"))
    steps, denominator = data("sft")
    group = make(bench, "sft", base, 2, zero)
    run_steps(group, steps, 2, denominator)
    use(group, "export", sl)
    loss = run_steps(group, steps[:1], 2, denominator)[0]["loss"]
    assert not (Path(sl) / "model.safetensors").exists()
    assert plain_loss(load_hf_causal(sl, "fp32"), steps[0]).item() == pytest.approx(loss, rel=1e-5)

    pairs = ragged_pairs(5)
    group = make(bench, "dpo", sl, 2, zero)
    reference = split(group, "reference_logprobs", pairs, 2)
    with torch.no_grad():
        plain = [tuple(side.item() for side in both(load_hf_causal(sl, "fp32"), pair)) for pair in pairs]
        under = [tuple(side.item() for side in both(AutoModelForCausalLM.from_pretrained(base), p)) for p in pairs]
    assert np.array(reference) == pytest.approx(np.array(plain), abs=1e-4)
    assert np.array(reference) != pytest.approx(np.array(under), abs=1e-2), "SFT has learned something"
    assert split(group, "pair_logprobs", pairs, 2) == reference, "B = 0: the policy begins as the reference"
    run_steps(group, *data("dpo")[:1], 2, count)
    assert split(group, "reference_logprobs", pairs, 2) == reference, "the base is what it was, bit for bit"
    after = split(group, "pair_logprobs", pairs, 2)
    assert np.abs(np.array(after) - np.array(reference)).max() > 0.1
    use(group, "export", aligned)
    with torch.no_grad():
        exported = [tuple(side.item() for side in both(load_hf_causal(aligned, "fp32"), pair)) for pair in pairs]
    assert np.array(exported) == pytest.approx(np.array(after), abs=1e-4)

    group = make(bench, "preference", sl, 2, zero)
    run_steps(group, *data("preference")[:1], 2, count)
    scores = split(group, "pair_scores", pairs, 2)
    use(group, "export", preference)
    model = load_scalar(preference, "fp32", 0)
    ids = [pair.ids_a for pair in pairs]
    with torch.no_grad():
        heads = model(torch.tensor([one for row in ids for one in row]), torch.tensor([len(row) for row in ids]))
    last = np.cumsum([len(row) for row in ids]) - 1
    assert heads[last].tolist() == pytest.approx([a for a, _ in scores], abs=1e-5)
    RewardWorker(RankInfo("reward", 0, 1), model=preference, dtype="fp32", end_id=END)
