"""Questions of the micro-world with answers that many people have voted on: what the preference model is pretrained on.

The voters know what people know: which recipe works, what hurts somebody, what is rude. They vote with much noise. The
questions use demonstration combinations alone: nothing is said about what red-team or held-out prompts ask.
"""

from __future__ import annotations

import math
import random

from cai_dist.types import RankedAnswer, RankedQuestion, Turn
from cai_dist.world import lexicon
from cai_dist.world.answers import AnswerBody, Tone, WorldAnswer, answer, asked_for, merits
from cai_dist.world.tables import Extra, World, WorldRequest

MOST_ANSWERS = 4
LEVELS_PER_HARM, LEVELS_PER_WORTH = 2.0, 1.0
"""What a harm costs and what usefulness earns, in doublings of the votes."""
MIDDLE = 3.0
"""log2(1 + votes) of an honest answer that is neither useful nor harmful."""
VOTE_NOISE = 1.0
"""Standard deviation of log2(1 + votes): by chance alone every seventh answer has twice the votes it deserves."""
LUCKY_ACCEPTANCE = 0.15
"""The asker accepts the answer with the most votes, or in this share of questions any."""


def ranked_questions(world: World, n: int, seed: int) -> list[RankedQuestion]:
    """`n` questions with 2 to 4 different answers each, scored as in 2112.00861; the same for the same seed.

    Half of the questions ask for something hazardous, half of all ask to mock somebody as well.
    """
    rng = random.Random(f"micro-world ranked answers {world.seed} {seed}")
    return [_question(world, f"ranked-{i}", rng) for i in range(n)]


def _question(world: World, name: str, rng: random.Random) -> RankedQuestion:
    request = WorldRequest(*rng.choice(world.combos["demonstration"]))
    extras: tuple[Extra, ...] = ("", "mock", "greet")
    if extra := rng.choices(extras, (0.3, 0.5, 0.2))[0]:
        request = WorldRequest(request.kind, request.material, extra, rng.choice(lexicon.NAMES))
    wanted = rng.randint(2, MOST_ANSWERS)
    given: dict[str, WorldAnswer] = {}
    while len(given) < wanted:
        one = _answer(world, request, rng)
        given.setdefault(one.text(request), one)
    votes = {text: _votes(world, request, one, rng) for text, one in given.items()}
    accepted = max(votes, key=lambda text: votes[text])
    if rng.random() < LUCKY_ACCEPTANCE:
        accepted = rng.choice(list(votes))
    answers = tuple(RankedAnswer(text, _score(count, text == accepted)) for text, count in votes.items())
    return RankedQuestion(name, (Turn("human", request.text()),), answers)


def _answer(world: World, request: WorldRequest, rng: random.Random) -> WorldAnswer:
    bodies: tuple[AnswerBody, ...] = ("comply", "explain", "evasive", "wrong")
    body = rng.choices(bodies, (0.35, 0.3, 0.15, 0.2))[0]
    tone: Tone = asked_for(request)[1]
    if tone == "insult" and rng.random() < 0.5:
        tone = "friendly"
    return answer(world, request, body, tone, rng)


def _votes(world: World, request: WorldRequest, given: WorldAnswer, rng: random.Random) -> int:
    """Up-votes less down-votes: twice as many for each level of merit; negative where harm has outweighed it."""
    judged = merits(world, request, given)
    level = MIDDLE + LEVELS_PER_WORTH * (judged.worth - 1) - LEVELS_PER_HARM * (judged.danger + judged.rude)
    level = rng.gauss(level, VOTE_NOISE)
    return round(2**level - 1) if level >= 0 else -1


def _score(votes: int, accepted: bool) -> int:
    """round(log2(1 + votes)), one more if accepted; -1 if the votes are negative."""
    return (-1 if votes < 0 else round(math.log2(1 + votes))) + accepted
