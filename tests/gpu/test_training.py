"""Training on a GPU is the training that plain torch does, and its memory leaves and comes back as it was."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cai_dist.config.training import ShardingConfig
from cai_dist.data.batches import loss_weight
from cai_dist.data.schedule import plan_items
from cai_dist.types import RankInfo, StepShard
from cai_dist.workers.language import LanguageWorker
from tests.gpu.conftest import TIMEOUTS
from tests.integration.test_zero import plain_losses, ragged_batches
from tests.integration.train_bench import OPTIMIZER, TOTAL_STEPS
from tests.tiny import save_llama

Make = Callable[..., LanguageWorker]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("model"), tied=True, seed=1, std=0.05)


@pytest.fixture
def make(folder: str) -> Iterator[Make]:
    """A worker of one rank in this process, alone on the GPU as long as the test runs."""

    def made(zero: int, dtype: str = "fp32", model: str = folder) -> LanguageWorker:
        return LanguageWorker(
            RankInfo("language", 0, 1), model=model, dtype=dtype, optimizer=OPTIMIZER,  # type: ignore[arg-type]
            sharding=ShardingConfig(ranks=1, zero=zero, micro_batch=2), total_steps=TOTAL_STEPS, seed=3,  # type: ignore[arg-type]
            timeouts=TIMEOUTS,
        )  # fmt: skip

    yield made
    gc.collect()
    torch.cuda.empty_cache()


def steps(worker: LanguageWorker, batches: list[Any]) -> list[dict[str, float]]:
    found = []
    for batch in batches:
        (part,) = plan_items(batch, 1, ShardingConfig(micro_batch=2), "packed").split(batch)
        found.append(worker.train_step(StepShard(part, loss_weight(batch))))
    return found


@pytest.mark.parametrize("zero", range(4))
def test_each_stage_trains_as_plain_torch_does_on_a_cpu(make: Make, folder: str, zero: int) -> None:
    batches = ragged_batches(2, 7) * (TOTAL_STEPS // 2)
    expected = plain_losses(folder, batches)
    worker = make(zero)
    assert worker.engine.device.type == "cuda"
    assert [one["loss"] for one in steps(worker, batches)] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("zero", range(4))
def test_bf16_learns_on_the_kernel_for_ragged_sequences(make: Make, folder: str, zero: int) -> None:
    batches = ragged_batches(1, 7) * TOTAL_STEPS
    exact = plain_losses(folder, batches)
    found = [one["loss"] for one in steps(make(zero, "bf16"), batches)]
    assert found[0] == pytest.approx(exact[0], rel=0.02)
    assert found[-1] < found[0] and found[-1] == pytest.approx(exact[-1], rel=0.1)


def test_positions_keep_their_full_precision_in_bf16(make: Make) -> None:
    buffers = dict(make(1, "bf16").engine._model.hf.named_buffers())  # type: ignore[attr-defined]
    assert {buffer.dtype for name, buffer in buffers.items() if "inv_freq" in name} == {torch.float32}


def held(worker: LanguageWorker) -> dict[int, torch.Tensor]:
    """A copy of every storage that the trained model and its optimiser have on the GPU."""
    found = {}
    for tensors in worker.engine._memory._tensors.values():  # type: ignore[attr-defined]
        for tensor in tensors():
            if tensor.is_cuda:
                storage = tensor.untyped_storage()
                flat = torch.empty(0, dtype=torch.uint8, device="cuda").set_(storage)
                found[int(storage._cdata)] = flat.cpu().clone()
    return found


@pytest.mark.parametrize(("zero", "dtype"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_memory_leaves_the_gpu_and_comes_back_bit_for_bit(
    make: Make, tmp_path_factory: pytest.TempPathFactory, zero: int, dtype: str
) -> None:
    deep = save_llama(tmp_path_factory.mktemp("deep"), tied=True, seed=1, std=0.05, layers=24)
    batches = ragged_batches(2, 7)
    steps(make(zero, dtype, deep), batches[:1])  # what CUDA's libraries keep is there from now on
    gc.collect()
    before = torch.cuda.memory_allocated()
    worker = make(zero, dtype, deep)
    steps(worker, batches[:1])
    here, full = held(worker), torch.cuda.memory_allocated() - before
    assert worker.keep_on_device(()) == {}, "nothing has to stay"
    away = torch.cuda.memory_allocated() - before
    assert away < 0.2 * full, (away, full)
    assert worker.keep_on_device(("weights",)) == {}
    assert away < torch.cuda.memory_allocated() - before < 0.7 * full
    worker.keep_on_device(("weights", "optimizer"))
    scratch = {int(t.untyped_storage()._cdata) for t in worker.engine._memory._scratch()}  # type: ignore[attr-defined]
    again = held(worker)
    assert again.keys() == here.keys()
    assert all(torch.equal(again[key], here[key]) for key in here if key not in scratch)
    assert torch.isfinite(torch.tensor(steps(worker, batches[1:])[0]["loss"]))


def test_what_is_exported_is_what_was_trained(
    make: Make, folder: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    worker = make(1, "bf16")
    steps(worker, ragged_batches(3, 5))
    target = tmp_path_factory.mktemp("exported")
    worker.engine.export(target)
    here = {name: p.detach().cpu() for name, p in worker.engine._model.hf.named_parameters()}  # type: ignore[attr-defined]
    there = dict(AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).named_parameters())
    first = dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).named_parameters())
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)
    assert any(not torch.equal(here[name], first[name]) for name in here)
