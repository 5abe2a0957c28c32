"""Small models, weights in parts, and what plain transformers says of a response."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from cai_dist.config.engine import EngineConfig, VllmConfig
from cai_dist.engines.hf.sampling import sampling_logprobs
from cai_dist.models.tensors import spec_of, to_numpy
from cai_dist.types import Generation, TensorPiece, TensorSpec, WeightPart
from tests.ids import ids_of

VOCAB, END = 64, 2
VLLM = EngineConfig(backend="vllm", vllm=VllmConfig(kv_cache_gb=0.05))


def save_model(folder: Path, *, tied: bool, seed: int, heads: int = 2) -> str:
    """A random Llama of width 64, its weights wide enough that seeds differ clearly. Its padding id is its end id."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=END,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


MIXTURE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": END,
    "pad_token_id": END,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 2,
}


def qwen3_moe() -> Any:
    made = Qwen3MoeConfig(**MIXTURE, head_dim=32, moe_intermediate_size=64, num_experts=4, norm_topk_prob=True)
    return Qwen3MoeForCausalLM(made)


def mixtral() -> Any:
    return MixtralForCausalLM(MixtralConfig(**MIXTURE, num_local_experts=4))


def saved(kind: str, folder: Path, seed: int) -> str:
    if kind in ("tied", "untied"):
        return save_model(folder, tied=kind == "tied", seed=seed)
    torch.manual_seed(seed)
    {"qwen3_moe": qwen3_moe, "mixtral": mixtral}[kind]().save_pretrained(folder)
    return str(folder)


def random_prompts(count: int, seed: int = 0, longest: int = 15) -> tuple[tuple[int, ...], ...]:
    rng = random.Random(seed)
    return tuple(tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, longest))) for _ in range(count))


def transfer(folder: str) -> tuple[list[TensorSpec], list[list[WeightPart]]]:
    """Manifest of the model in `folder` and its tensors: buckets of three, each tensor in two parts as of two ranks."""
    named = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    manifest = [spec_of(name, tensor) for name, tensor in named.items()]
    buckets = []
    for start in range(0, len(manifest), 3):
        specs = manifest[start : start + 3]
        buckets.append([part_of(named, specs, half) for half in (0, 1)])
    return manifest, buckets


def send(engine: Any, folder: str, version: int) -> None:
    """A whole transfer of the model in `folder`."""
    manifest, buckets = transfer(folder)
    engine.begin_weights(version, manifest)
    for bucket in buckets:
        engine.accept_weights(bucket)
    engine.finish_weights(version)


def part_of(named: dict[str, torch.nn.Parameter], specs: Sequence[TensorSpec], half: int) -> WeightPart:
    pieces, data = [], []
    for spec in specs:
        flat = to_numpy(named[spec.name]).reshape(-1)
        middle = len(flat) // 3
        start, end = (0, middle) if half == 0 else (middle, len(flat))
        pieces.append(TensorPiece(spec.name, start, end - start))
        data.append(flat[start:end].view(np.uint8))
    return WeightPart(tuple(pieces), np.concatenate(data))


def recomputed(folder: str, samples: Sequence[Generation], temperature: float, top_p: float) -> Iterator[list[float]]:
    """Of each sample, the log-probabilities of its response by transformers, one sequence at a time."""
    net = AutoModelForCausalLM.from_pretrained(folder).eval()
    for sample in samples:
        ids = torch.tensor([ids_of(sample)])
        with torch.no_grad():
            table = sampling_logprobs(net(input_ids=ids).logits[0], temperature, top_p)
        start = len(sample.prompt_ids)
        yield [float(table[t - 1, ids[0, t]]) for t in range(start, ids.shape[1])]


def worst(folder: str, samples: Sequence[Generation], temperature: float = 1.0, top_p: float = 1.0) -> float:
    """The largest difference (nats) between the log-probabilities of samples and those of transformers."""
    found = recomputed(folder, samples, temperature, top_p)
    return max(abs(a - b) for s, own in zip(samples, found, strict=True) for a, b in zip(s.logprobs, own, strict=True))
