"""Carriers of tuples, as a pipeline without arrays has them: what `carriers.py` measures arrays against."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from cai_dist.config.ppo import PpoConfig
from cai_dist.experience.algorithms.protocol import Experience
from cai_dist.experience.algorithms.registry import ALGORITHMS

Rows = list[list[float]]


@dataclass(frozen=True, slots=True)
class Sample:
    """A response and its prompt."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """A sample that is trained on."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    old_logprobs: tuple[float, ...]
    ref_logprobs: tuple[float, ...]
    values: tuple[float, ...]
    rewards: tuple[float, ...]
    advantages: tuple[float, ...]
    returns: tuple[float, ...]
    sampler_logprobs: tuple[float, ...]
    weights: tuple[float, ...]


def sampled(prompts: list[tuple[int, ...]], tokens: Tensor, logprobs: Tensor) -> list[Sample]:
    """From what a sampler holds, [B, T] each."""
    rows = zip(prompts, tokens.tolist(), logprobs.tolist(), strict=True)
    made = [Sample(prompt, tuple(ids), tuple(numbers)) for prompt, ids, numbers in rows]
    _finite([list(sample.logprobs) for sample in made])
    return made


def batch_of(items: list[Sample] | list[Scored]) -> tuple[Tensor, list[int], list[int]]:
    """Flat ids, where each sequence ends, and where its response begins."""
    ids = torch.tensor([token for item in items for token in item.prompt_ids + item.response_ids])
    ends, begins, end = [], [], 0
    for item in items:
        begins.append(end + len(item.prompt_ids))
        end += len(item.prompt_ids) + len(item.response_ids)
        ends.append(end)
    return ids, begins, ends


def answered(items: list[Sample], flat: Tensor, more: int = 0) -> Rows:
    """A role's numbers of the response tokens, out of its forward pass."""
    _, begins, ends = batch_of(items)
    numbers = flat.tolist()
    rows = [[*numbers[begin:end], *[0.0] * more] for begin, end in zip(begins, ends, strict=True)]
    _finite(rows)
    return rows


def trajectories(
    samples: list[Sample], logprobs: Rows, reference: Rows, values: Rows, scores: Tensor, config: PpoConfig
) -> tuple[list[Scored], tuple[float, float]]:
    """What is trained on, with mean and deviation of the advantages."""
    ours, mask = _padded(logprobs), torch.arange(max(map(len, logprobs))) < torch.tensor([[len(r)] for r in logprobs])
    penalties = 0.05 * (ours - _padded(reference)).masked_fill(~mask, 0.0)
    before = _padded([row[:-1] for row in values])
    batch = Experience(mask, scores, penalties, before, torch.zeros(len(samples), dtype=torch.float64))
    estimate = ALGORITHMS["gae"](batch, config)
    assert estimate.returns is not None
    ratios = [
        [min(math.exp(min(max(a - b, -20.0), 20.0)), 2.0) for a, b in zip(row, sample.logprobs, strict=True)]
        for row, sample in zip(logprobs, samples, strict=True)
    ]
    made = [
        Scored(
            sample.prompt_ids, sample.response_ids, tuple(logprobs[n]), tuple(reference[n]), tuple(values[n][:-1]),
            tuple(batch.rewards[n, : len(logprobs[n])].tolist()),
            tuple(estimate.advantages[n, : len(logprobs[n])].tolist()),
            tuple(estimate.returns[n, : len(logprobs[n])].tolist()), sample.logprobs, tuple(ratios[n]),
        )
        for n, sample in enumerate(samples)
    ]  # fmt: skip
    gaps = [a - b for item in made for a, b in zip(item.old_logprobs, item.sampler_logprobs, strict=True)]
    for of in ("rewards", "old_logprobs", "weights"):
        math.fsum(number for item in made for number in getattr(item, of))
    math.fsum(map(abs, gaps)), math.fsum(math.expm1(d) - d for d in gaps)
    _moments([number for item in made for number in item.returns])
    _moments([a - b for item in made for a, b in zip(item.returns, item.values, strict=True)])
    return made, _moments([number for item in made for number in item.advantages])


def learned(items: list[Scored], mean: float, deviation: float) -> list[Tensor]:
    """The batch of a training step, with whitened advantages."""
    items = [replace(item, advantages=tuple([(a - mean) / deviation for a in item.advantages])) for item in items]
    ids, _, _ = batch_of(items)
    columns = ("old_logprobs", "ref_logprobs", "values", "advantages", "returns", "weights")
    return [
        ids,
        *(
            torch.tensor(list(chain.from_iterable([*[0.0] * len(i.prompt_ids), *getattr(i, name)] for i in items)))
            for name in columns
        ),
    ]


def _padded(rows: Rows) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float64)


def _finite(rows: Rows) -> None:
    if not all(all(map(math.isfinite, row)) for row in rows):
        raise ValueError("not finite")


def _moments(numbers: list[float]) -> tuple[float, float]:
    mean = math.fsum(numbers) / len(numbers)
    return mean, math.sqrt(math.fsum([(number - mean) ** 2 for number in numbers]) / len(numbers))
