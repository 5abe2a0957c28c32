"""Adapters under every ZeRO stage: what moves, what stays, what is written, and PPO without reference workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftLora
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import cai_dist
from cai_dist.cluster.group import WorkerGroup
from cai_dist.config.training import LoraConfig, ShardingConfig
from cai_dist.data.batches import loss_weight
from cai_dist.engines.training.learning_rate import learning_rate
from cai_dist.errors import WorkerError
from cai_dist.types import ScoredPair
from tests.integration.test_zero import plain_loss, ragged_batches
from tests.integration.train_bench import OPTIMIZER, TOTAL_STEPS, TrainBench, run_steps, split, use
from tests.tiny import save_llama

LANGUAGE = "language:LanguageWorker"
PREFERENCE = "preference:PreferenceWorker"
LORA = LoraConfig(rank=2, alpha=3.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("base"), tied=False, seed=2, std=0.05)


@pytest.fixture(scope="module")
def partitioned(tmp_path_factory: pytest.TempPathFactory) -> str:
    """ZeRO-3 that also splits small tensors (by default it keeps whole all that a tiny model has)."""
    packaged = Path(cai_dist.__file__).parent / "ds_configs" / "zero3.json"
    settings = json.loads(packaged.read_text())
    settings["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 10_000}
    path = tmp_path_factory.mktemp("ds") / "partitioned.json"
    path.write_text(json.dumps(settings))
    return str(path)


@pytest.fixture(params=["1x0", "2x0", "2x1", "2x2", "2x3", "2x3 partitioned"])
def sharding(request: pytest.FixtureRequest, partitioned: str) -> ShardingConfig:
    """Ranks x ZeRO stage."""
    file = partitioned if "partitioned" in request.param else None
    return ShardingConfig(ranks=int(request.param[0]), zero=int(request.param[2]), micro_batch=2, ds_config=file)  # type: ignore[arg-type]


def make(bench: TrainBench, model: str, sharding: ShardingConfig, kind: str = LANGUAGE, **kwargs: Any) -> WorkerGroup:
    """A fresh worker with the adapters of `LORA`, or of a `lora` among `kwargs`."""
    shape = {"ranks": sharding.ranks, "zero": sharding.zero, "micro_batch": sharding.micro_batch}
    return bench.make(kind, model, **shape, **({"sharding": sharding, "lora": LORA} | kwargs))


def raw(group: WorkerGroup) -> dict[str, tuple[np.ndarray, bool]]:
    """Every parameter and whether it is trained; all ranks must hold the same."""
    ranks = group.broadcast("raw", "raw")
    for other in ranks[1:]:
        assert all(np.array_equal(array, other[name][0]) for name, (array, _) in ranks[0].items())
    return ranks[0]


def plain_training(model: str, start: dict[str, np.ndarray], batches: list[Any]) -> list[dict[str, float]]:
    """The same training by PEFT and torch alone, from the same A."""
    config = PeftLora(r=LORA.rank, lora_alpha=LORA.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    net = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    trained = {n.removeprefix("base_model.model."): p for n, p in net.named_parameters() if p.requires_grad}
    assert trained.keys() == start.keys()
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(torch.tensor(start[name]))
    adam = torch.optim.AdamW(
        trained.values(), betas=OPTIMIZER.betas, eps=OPTIMIZER.eps, weight_decay=OPTIMIZER.weight_decay
    )
    metrics = []
    for step, batch in enumerate(batches):
        adam.zero_grad()
        loss = plain_loss(net, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), OPTIMIZER.grad_clip)
        adam.param_groups[0]["lr"] = learning_rate(OPTIMIZER, step, TOTAL_STEPS)
        adam.step()
        metrics.append({"loss": loss.item(), "grad_norm": norm.item()})
    return metrics


def test_adapters_train_as_in_plain_peft_and_nothing_else_moves(
    bench: TrainBench, base: str, sharding: ShardingConfig
) -> None:
    batches = ragged_batches(2, 5) * 2
    group = make(bench, base, sharding)
    before = raw(group)
    metrics = run_steps(group, batches, 2, loss_weight)
    after = raw(group)
    trained = {name for name, (_, is_trained) in before.items() if is_trained}
    assert len(trained) == 2 * 7 * 2 and trained == {name for name in before if ".lora_" in name}
    assert {name for name in before if not np.array_equal(before[name][0], after[name][0])} == trained
    expected = plain_training(base, {name: before[name][0] for name in trained}, batches)
    for mine, plain in zip(metrics, expected, strict=True):
        assert mine["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-5)


def test_resume_is_bitwise_and_frozen_weights_are_not_written(
    bench: TrainBench, base: str, sharding: ShardingConfig, tmp_path: Path
) -> None:
    batches = ragged_batches(6, 5)
    lora = LORA.model_copy(update={"dropout": 0.1})
    group = make(bench, base, sharding, lora=lora)
    run_steps(group, batches[:3], 2, loss_weight)
    use(group, "save", str(tmp_path / "checkpoint"))
    straight = run_steps(group, batches[3:], 2, loss_weight)
    expected = raw(group)

    group = make(bench, base, sharding, lora=lora, seed=99)
    use(group, "load", str(tmp_path / "checkpoint"))
    assert run_steps(group, batches[3:], 2, loss_weight) == straight
    assert all(np.array_equal(array, expected[name][0]) for name, (array, _) in raw(group).items())
    written = sum(path.stat().st_size for path in (tmp_path / "checkpoint").rglob("*.pt"))
    assert written < (Path(base) / "model.safetensors").stat().st_size / 2


def test_a_checkpoint_of_another_kind_is_refused(bench: TrainBench, base: str, tmp_path: Path) -> None:
    one = ShardingConfig(ranks=1, zero=2, micro_batch=2)
    use(make(bench, base, one), "save", str(tmp_path / "lora"))
    use(make(bench, base, one, lora=None), "save", str(tmp_path / "full"))
    for saved, lora, message in [
        ("lora", None, r"saved with LoRA \(rank 2, alpha 3, 14 layers .*this run trains all weights"),
        ("full", LORA, r"saved with all weights but this run trains LoRA \(rank 2"),
        ("lora", LoraConfig(rank=4, alpha=3.0), r"saved with LoRA \(rank 2.*trains LoRA \(rank 4"),
        ("lora", LORA.model_copy(update={"target_modules": ("q_proj",)}), r"14 layers.*trains LoRA .*2 layers"),
    ]:
        with pytest.raises(WorkerError, match=f"CheckpointError.*{message}"):
            use(make(bench, base, one, lora=lora), "load", str(tmp_path / saved))


def test_an_export_is_the_plain_model_that_was_trained(
    bench: TrainBench, base: str, sharding: ShardingConfig, tmp_path: Path
) -> None:
    batches = ragged_batches(2, 4)
    group = make(bench, base, sharding)
    run_steps(group, batches * 2, 2, loss_weight)
    use(group, "export", str(tmp_path / "merged"))
    # The loss of the next step is computed before it changes anything: the exported model must have the same.
    expected = run_steps(group, batches[:1], 2, loss_weight)[0]["loss"]
    losses = [
        plain_loss(AutoModelForCausalLM.from_pretrained(f), batches[0]).item() for f in (tmp_path / "merged", base)
    ]
    assert losses[0] == pytest.approx(expected, rel=1e-5) and losses[1] != pytest.approx(expected, rel=1e-3)
    merged, plain = (load_file(Path(f) / "model.safetensors") for f in (tmp_path / "merged", base))
    assert {name: t.shape for name, t in merged.items()} == {name: t.shape for name, t in plain.items()}
    same = {name for name in plain if torch.equal(merged[name], plain[name])}
    assert same == {name for name in plain if "_proj" not in name}, "what has no adapter is exported bit for bit"


def test_bf16_adapters_train_in_every_stage(bench: TrainBench, base: str) -> None:
    batch = ragged_batches(1, 4)
    for zero in range(4):
        sharding = ShardingConfig(ranks=2, zero=zero, micro_batch=2)  # type: ignore[arg-type]
        group = make(bench, base, sharding, dtype="bf16", lora=LoraConfig(rank=8, alpha=64.0))
        metrics = run_steps(group, batch * TOTAL_STEPS, 2, loss_weight)
        assert metrics[-1]["loss"] < 0.97 * metrics[0]["loss"], zero


def test_a_scalar_model_trains_adapters_and_head_and_loads_with_plain_transformers(
    bench: TrainBench, base: str, partitioned: str, tmp_path: Path
) -> None:
    pairs = [ScoredPair((3, 4 + i, 5), (6, 7, 8 + i), 0.9) for i in range(5)]
    for zero, file in ((0, None), (3, partitioned)):
        sharding = ShardingConfig(ranks=2, zero=zero, micro_batch=2, ds_config=file)  # type: ignore[arg-type]
        group = make(bench, base, sharding, PREFERENCE)
        before = raw(group)
        run_steps(group, [pairs] * 3, 2, lambda batch: float(len(batch)))
        after = raw(group)
        moved = {name for name in before if not np.array_equal(before[name][0], after[name][0])}
        assert moved == {name for name in before if ".lora_" in name or name == "score.weight"}
        folder = tmp_path / f"zero{zero}"
        use(group, "export", str(folder))
        net = AutoModelForSequenceClassification.from_pretrained(folder)
        with torch.no_grad():
            plain = [net(input_ids=torch.tensor([pair.ids_a])).logits.item() for pair in pairs]
        assert [a for a, _ in split(group, "pair_scores", pairs, 2)] == pytest.approx(plain, abs=1e-5)
