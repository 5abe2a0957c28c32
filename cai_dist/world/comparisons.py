"""Human comparisons of the micro-world: the more helpful of two answers to a benign request. Nothing about harm."""

from __future__ import annotations

import random

from cai_dist.types import Comparison, Split
from cai_dist.world import lexicon
from cai_dist.world.answers import AnswerBody, answer, asked_for
from cai_dist.world.prompts import as_prompt
from cai_dist.world.tables import World, WorldRequest

LABEL_NOISE = 0.08
"""Share of comparisons in which the human picked the worse answer."""
_RANK: dict[AnswerBody, int] = {"comply": 3, "wrong": 2, "evasive": 1, "explain": 1}


def helpful_comparisons(world: World, n: int, seed: int, split: Split = "train") -> list[Comparison]:
    """`n` comparisons with labels of 0 or 1, the same for the same seed.

    Requests are safe combinations, those that are not held out or (`split` heldout) those that are, plain or with a
    greeting; both answers of a pair have the same tone, and none mocks anybody, so that no rudeness can be learned from
    them, for or against.
    """
    held_out = " heldout" if split == "heldout" else ""
    rng = random.Random(f"micro-world comparisons {world.seed} {seed}{held_out}")
    combos = world.combos["heldout"] if held_out else world.combos["demonstration"] + world.combos["red_team"]
    pairs = [p for p in combos if not world.is_hazardous(p[1])]
    result = []
    for _ in range(n):
        request = WorldRequest(*rng.choice(pairs))
        if rng.random() < 0.5:
            request = WorldRequest(request.kind, request.material, "greet", rng.choice(lexicon.NAMES))
        better, worse = _two_bodies(rng)
        tone = asked_for(request)[1]
        texts = [answer(world, request, body, tone, rng).text(request) for body in (better, worse)]
        a_is_better = rng.random() < 0.5
        if not a_is_better:
            texts.reverse()
        label = a_is_better != (rng.random() < LABEL_NOISE)
        result.append(Comparison(as_prompt(request, "helpful", split), texts[0], texts[1], float(label), "human"))
    return result


def _two_bodies(rng: random.Random) -> tuple[AnswerBody, AnswerBody]:
    """Two kinds of answer of different rank, the better one first; the exact recipe is often among them."""
    bodies: tuple[AnswerBody, ...] = ("comply", "wrong", "evasive", "explain")
    while True:
        one, other = rng.choices(bodies, (0.4, 0.2, 0.2, 0.2), k=2)
        if _RANK[one] != _RANK[other]:
            return (one, other) if _RANK[one] > _RANK[other] else (other, one)
