"""With gradient checkpointing a step is the same step, bit for bit, and keeps a fraction of its activations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cai_dist.config.ppo import PpoConfig
from cai_dist.config.training import LoraConfig, ShardingConfig
from cai_dist.errors import ConfigError
from cai_dist.losses.policy import PolicyObjective
from cai_dist.models.checkpointing import use_checkpointing
from cai_dist.types import Generation, StepShard, TokenSequence
from cai_dist.workers.language import LanguageWorker
from cai_dist.workers.policy import PolicyWorker
from tests.architectures import ARCHITECTURES
from tests.inprocess import build_worker
from tests.tiny import save_llama

SHARD = StepShard(((TokenSequence(tuple(range(3, 43)), (1.0,) * 40), TokenSequence((5, 9, 7) * 8, (1.0,) * 24)),), 60.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("model"), tied=True, seed=0, layers=6)


@contextmanager
def kept() -> Iterator[list[int]]:
    """Bytes that forward passes keep for their backward passes while the block runs."""
    total = [0]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        total[0] += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def step(model: str, checkpointed: bool, zero: int, **kwargs: Any) -> tuple[dict[str, float], int, int]:
    """Metrics of a step, what its forward pass kept, and how often a layer was computed."""
    sharding = ShardingConfig(ranks=1, zero=zero, gradient_checkpointing=checkpointed)  # type: ignore[arg-type]
    made = build_worker(LanguageWorker, model, sharding=sharding, **kwargs)
    runs = [0]
    layer = made.engine._model.hf.get_decoder().layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
    with kept() as total:
        metrics = made.train_step(SHARD)
    return metrics, total[0], runs[0]


@pytest.mark.slow
@pytest.mark.parametrize(("zero", "lora"), [(0, None), (2, None), (3, None), (0, LoraConfig(rank=2, dropout=0.5))])
def test_a_step_is_the_same_and_keeps_a_third(model: str, zero: int, lora: LoraConfig | None) -> None:
    plain, all_of_it, once = step(model, False, zero, lora=lora)
    again, part, twice = step(model, True, zero, lora=lora)
    assert again == plain and plain["grad_norm"] > 0
    assert (once, twice) == (1, 2) and part < all_of_it / 3


def test_scoring_computes_nothing_twice(model: str) -> None:
    sharding = ShardingConfig(ranks=1, zero=0, gradient_checkpointing=True)
    made = build_worker(
        PolicyWorker, model, sharding=sharding, objective=PolicyObjective(0.2), temperature=1.0, ppo=PpoConfig()
    )
    runs = [0]
    made.engine._model.hf.get_decoder().layers[0].mlp.register_forward_pre_hook(
        lambda *_: runs.__setitem__(0, runs[0] + 1)
    )
    made.logprobs(StepShard(((Generation((1, 2), (3, 4), (0.0, 0.0), "stop", 0),),)), 1.0)
    assert runs == [1]


def test_dropout_is_drawn_once(model: str, tmp_path: Path) -> None:
    """The second computation of a layer has the dropout of the first: else its gradient would be of another loss."""
    name = next(one for one in ARCHITECTURES if one.name == "GPT-2")
    name.network().save_pretrained(tmp_path)
    found = []
    for checkpointed in (False, True):
        sharding = ShardingConfig(ranks=1, zero=0, gradient_checkpointing=checkpointed)
        made = build_worker(LanguageWorker, str(tmp_path), sharding=sharding, dropout=True)
        torch.manual_seed(4)
        found.append(made.train_step(SHARD))
    assert found[0] == found[1]


def test_auto_is_for_gpus_and_what_cannot_be_checkpointed_is_refused() -> None:
    hf = torch.nn.Linear(2, 2)  # no layer of transformers' in it
    llama = next(one for one in ARCHITECTURES if one.name == "Llama 3").network()
    assert not use_checkpointing(llama, ShardingConfig(), on_gpu=False)
    assert not use_checkpointing(llama, ShardingConfig(gradient_checkpointing=False), on_gpu=True)
    assert use_checkpointing(llama, ShardingConfig(), on_gpu=True)
    automatic, asked = ShardingConfig(), ShardingConfig(gradient_checkpointing=True)
    assert automatic.checkpoints(on_gpu=True) and not automatic.checkpoints(on_gpu=False)
    assert not use_checkpointing(hf, automatic, on_gpu=True)
    assert not use_checkpointing(hf, automatic, on_gpu=False)
    with pytest.raises(ConfigError, match=r"^gradient_checkpointing=true: the layers of Linear"):
        use_checkpointing(hf, asked, on_gpu=False)


@pytest.mark.slow
def test_every_architecture_of_the_table_has_layers_that_can_be() -> None:
    without = []
    for one in ARCHITECTURES:
        with torch.device("meta"):
            hf = AutoModelForCausalLM.from_config(one.config())
        if not use_checkpointing(hf, ShardingConfig(), on_gpu=True):
            without.append(one.name)
    assert without == []
