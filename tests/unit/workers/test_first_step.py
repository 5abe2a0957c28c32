"""What a training pass computes is what a scoring pass computes, in every architecture: real workers, real engine."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cai_dist.config.ppo import PpoConfig
from cai_dist.config.training import LoraConfig
from cai_dist.losses.policy import PolicyObjective
from cai_dist.types import (
    DpoPair,
    Generation,
    RatedSequence,
    ScoredPair,
    StepShard,
    TokenSequence,
    Trajectory,
)
from cai_dist.workers.dpo import DpoWorker
from cai_dist.workers.language import LanguageWorker
from cai_dist.workers.policy import PolicyWorker
from cai_dist.workers.preference import PreferenceWorker
from cai_dist.workers.rating import RatingWorker
from cai_dist.workers.value import ValueWorker
from tests.ids import ids_of, prompt_of, response_of
from tests.inprocess import build_worker

VOCAB = 64
MODELS: dict[str, dict[str, Any]] = {
    # Their dropout is the default of their configurations: 0.1 in most places.
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "opt": {
        "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 64, "layerdrop": 0.5, "attention_dropout": 0.1,
    },
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "rotary_dim": 8},
    "gpt_neox": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 64, "attention_dropout": 0.1, "hidden_dropout": 0.1,
    },
    "mixtral": {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "num_local_experts": 4, "max_position_embeddings": 64, "router_jitter_noise": 0.3,
        "attention_dropout": 0.1,
    },
}  # fmt: skip
NOISY = {"gptj": {"attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}}
"""Where the library's own default is 0 (published GPT-J is too): as a config.json may have it."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = {}
    for name, size in MODELS.items():
        torch.manual_seed(5)
        config = AutoConfig.for_model(
            name, vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, pad_token_id=0, **size, **NOISY.get(name, {})
        )
        folder = tmp_path_factory.mktemp(name)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        made[name] = str(folder)
    return made


def samples(count: int = 4) -> list[Generation]:
    rng = random.Random(1)
    made = []
    for n in range(count):
        prompt, response = (tuple(rng.randrange(3, VOCAB) for _ in range(k)) for k in (3 + n, 4 + 2 * n))
        made.append(Generation(prompt, response, (-4.0,) * len(response), "stop", 0))
    return made


def trajectories(items: Sequence[Generation], old: Sequence[Sequence[float]]) -> list[Trajectory]:
    made = []
    for item, row in zip(items, old, strict=True):
        ones = (1.0,) * len(row)
        made.append(
            Trajectory(
                prompt_ids=prompt_of(item), response_ids=response_of(item), old_logprobs=tuple(row),
                ref_logprobs=tuple(row), values=ones, rewards=ones, advantages=ones, returns=ones, score=1.0,
                finish="stop", weight_version=0, sampler_logprobs=tuple(row), weights=ones,
            )
        )  # fmt: skip
    return made


def first_step(folder: str, **kwargs: Any) -> dict[str, float]:
    """Metrics of a policy's first step, its old log-probabilities being its own."""
    made = build_worker(
        PolicyWorker, folder, objective=PolicyObjective(0.2), temperature=1.0, ppo=PpoConfig(), **kwargs
    )
    items = samples()
    old = [list(row) for row in made.logprobs(StepShard((tuple(items),)), 1.0).rows]
    learned = trajectories(items, old)
    total = float(sum(len(one.response_ids) for one in learned))
    return dict(made.train_step(StepShard((tuple(learned),), total), 0.1, None))


@pytest.mark.parametrize("name", MODELS)
def test_the_first_ratio_is_exactly_one_whatever_dropout_a_model_ships_with(folders: dict[str, str], name: str) -> None:
    layout = "packed" if name in ("gpt2", "gpt_neox", "mixtral") else "padded"
    found = first_step(folders[name], layout=layout)
    assert (found["ratio_deviation"], found["approx_kl"], found["clip_fraction"]) == (0.0, 0.0, 0.0)
    assert found["grad_norm"] > 0


def test_an_adapters_dropout_is_a_setting_of_its_own(folders: dict[str, str]) -> None:
    quiet, noisy = (first_step(folders["gpt_neox"], lora=LoraConfig(rank=4, dropout=dropout)) for dropout in (0.0, 0.5))
    # With B at 0 the first outputs do not show it; gradients do.
    assert quiet["ratio_deviation"] == noisy["ratio_deviation"] == 0.0
    assert quiet["grad_norm"] != pytest.approx(noisy["grad_norm"], rel=1e-3)


def sequences() -> list[TokenSequence]:
    return [TokenSequence(ids_of(s), (0.0,) * len(s.prompt_ids) + (1.0,) * len(s.response_ids)) for s in samples()]


def pairs() -> list[ScoredPair]:
    whole = [ids_of(s) for s in samples(6)]
    return [ScoredPair(a, b, 0.8) for a, b in zip(whole[::2], whole[1::2], strict=True)]


CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "dpo": (
        DpoWorker,
        [DpoPair(p.ids_a, p.ids_b, 0.8, prompt_tokens=2, ref_a=-20.0, ref_b=-21.0) for p in pairs()],
        {"loss": "dpo", "beta": 0.1},
    ),
    "preference": (PreferenceWorker, pairs(), {}),
    "rating": (RatingWorker, [RatedSequence(s.ids, s.weights, 2.0) for s in sequences()], {}),
    "value": (ValueWorker, trajectories(samples(), [s.logprobs for s in samples()]), {"value_clip": 0.2}),
    "language": (LanguageWorker, sequences(), {}),
}


def losses(made: Any, items: Sequence[Any]) -> tuple[float, float]:
    """The loss as a scoring pass computes it, then as the first training pass did."""
    shard = StepShard((tuple(items),), 7.0)
    scored = made.engine.infer(shard.micro_batches, lambda model, batch: made._loss(model, batch, 7.0)[0].item())
    return scored[0], made.train_step(shard)["loss"]


@pytest.mark.parametrize("kind", CASES)
def test_every_worker_learns_from_what_it_would_score(folders: dict[str, str], kind: str) -> None:
    worker, items, kwargs = CASES[kind]
    scored, learned = losses(build_worker(worker, folders["gpt2"], **kwargs), items)
    assert learned == pytest.approx(scored, rel=1e-6)


def test_fine_tuning_may_have_the_models_own_dropout(folders: dict[str, str], tmp_path: Path) -> None:
    made = build_worker(LanguageWorker, folders["gpt2"], dropout=True)
    scored, learned = losses(made, sequences())
    assert learned != pytest.approx(scored, rel=1e-4)
    # Scoring afterwards has none again, and what is saved names the dropout that the model came with.
    shard = StepShard((tuple(sequences()),), 7.0)
    one, two = (made.engine.infer(shard.micro_batches, lambda m, b: made._loss(m, b, 7.0)[0].item()) for _ in range(2))
    assert one == two
    made.engine.export(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    before = json.loads((Path(folders["gpt2"]) / "config.json").read_text("utf-8"))
    assert {k: v for k, v in saved.items() if "drop" in k} == {k: v for k, v in before.items() if "drop" in k}
    assert saved["resid_pdrop"] == 0.1
