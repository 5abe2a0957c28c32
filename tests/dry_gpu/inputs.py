"""A tiny model and what workers are asked: ragged sequences, with an empty micro-batch among the parts."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cai_dist.models.load import load_scalar
from cai_dist.types import (
    DpoPair,
    Generation,
    LabelledPair,
    RatedSequence,
    ScoredPair,
    StepShard,
    TokenSequence,
    Trajectory,
)
from tests.tiny import END, VOCAB

T = TypeVar("T")
PARTS = 4
"""Micro-batches of a shard; the last one is empty."""
_rng = random.Random(0)


def _ids(count: int) -> tuple[int, ...]:
    return tuple(_rng.randrange(3, VOCAB) for _ in range(count))


def _numbers(count: int, middle: float = 0.0, width: float = 1.0) -> tuple[float, ...]:
    return tuple(_rng.uniform(middle - width, middle + width) for _ in range(count))


def _logprobs(count: int) -> tuple[float, ...]:
    """About those of tokens drawn evenly: for a model with small weights ratios are about 1."""
    return _numbers(count, -math.log(VOCAB), 0.3)


def _trajectory(number: int, sample: Generation) -> Trajectory:
    count = sample.model_tokens
    return Trajectory(
        sample.prompt_ids, sample.response_ids, _logprobs(count), _logprobs(count),
        *(_numbers(count) for _ in ("values", "rewards", "advantages", "returns")), score=0.1,
        finish="stop", weight_version=0, sampler_logprobs=_logprobs(count), weights=(0.5 + number,) * count,
        loss_mask=sample.loss_mask,
    )  # fmt: skip


SEQUENCES = [TokenSequence(_ids(n), tuple(float(t > n // 2) for t in range(n))) for n in (9, 40, 17, 5, 33, 8)]
RATED = [RatedSequence(one.ids, one.weights, float(i % 5)) for i, one in enumerate(SEQUENCES)]
PAIRS = [
    LabelledPair(_ids(a), _ids(b), 1.0 - 0.1 * i, prompt_tokens=2, answer_start=3)
    for i, (a, b) in enumerate(((9, 12), (45, 6), (8, 8), (5, 30), (11, 4), (7, 7)))
]
SCORED = [ScoredPair(one.ids_a, one.ids_b, one.p_a, prompt_tokens=2) for one in PAIRS]
DPO = [DpoPair(one.ids_a, one.ids_b, one.p_a, prompt_tokens=2, ref_a=-5.0, ref_b=-6.0) for one in PAIRS]
SAMPLES = [
    Generation(_ids(a), _ids(b), _numbers(b), "stop", 0)
    for a, b in ((5, 8), (30, 12), (7, 1), (3, 16), (12, 4), (2, 20))
]
SAMPLES[1] = replace(SAMPLES[1], logprobs=_numbers(9), loss_mask=[True] * 5 + [False] * 3 + [True] * 4)  # two turns
TRAJECTORIES = [_trajectory(i, one) for i, one in enumerate(SAMPLES)]
PROMPTS = tuple(_ids(_rng.randint(1, 20)) for _ in range(10))


def shard(items: Sequence[T], denominator: float = 10.0) -> StepShard[T]:
    """Two items a micro-batch; the last one is empty."""
    parts = [tuple(items[start : start + 2]) for start in range(0, len(items), 2)]
    assert len(parts) == PARTS - 1
    return StepShard((*parts, ()), denominator)


def save_models(folder: Path) -> None:
    """A causal model with grouped heads in `causal`, a scalar model in `scalar`."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, tie_word_embeddings=True,
        initializer_range=0.1, bos_token_id=1, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder / "causal")
    load_scalar(str(folder / "causal"), "fp32", 5).hf.save_pretrained(folder / "scalar")
