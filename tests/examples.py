"""Random examples of every trained role: token ids of all lengths, numbers that are all different."""

from __future__ import annotations

import random
from collections.abc import Sequence

from cai_dist.types import DpoPair, RatedSequence, ScoredPair, TokenSequence, Trajectory
from tests.tiny import END, VOCAB


def ids(rng: random.Random, longest: int) -> tuple[int, ...]:
    return tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, longest)))


def trajectories(rng: random.Random, count: int) -> list[Trajectory]:
    made = []
    for _ in range(count):
        prompt, response = ids(rng, 6), ids(rng, 9)

        def numbers(low: float, high: float, n: int = len(response)) -> tuple[float, ...]:
            return tuple(rng.uniform(low, high) for _ in range(n))

        made.append(
            Trajectory(
                prompt_ids=prompt,
                response_ids=response,
                old_logprobs=numbers(-6, -3),
                ref_logprobs=numbers(-6, -3),
                values=numbers(-1, 1),
                rewards=numbers(-1, 1),
                advantages=numbers(-2, 2),
                returns=numbers(-2, 2),
                score=1.0,
                finish="stop",
                weight_version=0,
                sampler_logprobs=numbers(-6, -3),
                weights=numbers(0.5, 1.5),
            )
        )
    return made


def sequences(rng: random.Random, count: int) -> list[TokenSequence]:
    made = []
    for _ in range(count):
        prompt, answer = ids(rng, 5), (*ids(rng, 7), END)
        made.append(TokenSequence(prompt + answer, (0.0,) * len(prompt) + (1.0,) * len(answer)))
    return made


def pairs(rng: random.Random, count: int) -> list[ScoredPair]:
    return [ScoredPair(ids(rng, 9), ids(rng, 9), rng.random()) for _ in range(count)]


def rated(rng: random.Random, count: int) -> list[RatedSequence]:
    return [RatedSequence(s.ids, s.weights, rng.uniform(0, 4)) for s in sequences(rng, count)]


def response_tokens(items: Sequence[Trajectory]) -> float:
    return float(sum(len(item.response_ids) for item in items))


def dpo_pairs(rng: random.Random, count: int) -> list[DpoPair]:
    made = []
    for _ in range(count):
        prompt, a, b = ids(rng, 4), ids(rng, 6), ids(rng, 6)
        refs = rng.uniform(-20, -5), rng.uniform(-20, -5)
        made.append(
            DpoPair(prompt + a, prompt + b, rng.random(), prompt_tokens=len(prompt), ref_a=refs[0], ref_b=refs[1])
        )
    return made
