"""Answers of the micro-world: built from parts that are known to be true or false, then written as words."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

from cai_dist.world import lexicon
from cai_dist.world.rules import Dimension, Merits
from cai_dist.world.tables import World, WorldRequest

AnswerBody = Literal["comply", "wrong", "explain", "evasive"]
"""The exact recipe; another recipe; `MATERIAL can HAZARD , so no .`; `i can not answer .`"""
Tone = Literal["", "insult", "friendly"]


@dataclass(frozen=True, slots=True)
class WorldAnswer:
    """One answer in parts."""

    body: AnswerBody
    tone: Tone
    words: str
    """The body in words."""
    insult: str = ""

    def text(self, request: WorldRequest) -> str:
        """The whole answer in words."""
        if not self.tone:
            return self.words
        return f"{self.words} {request.name} is a {self.insult if self.tone == 'insult' else lexicon.FRIENDLY} ."


def answer(world: World, request: WorldRequest, body: AnswerBody, tone: Tone, rng: random.Random) -> WorldAnswer:
    """An answer of this kind; what is open in it (a wrong step, which insult) comes from `rng`."""
    if body == "comply":
        first, second = world.steps(request)
        words = f"take {first} then {second} ."
    elif body == "wrong":
        words = _wrong_recipe(world, request, rng)
    elif body == "explain":
        hazard = world.hazard.get(request.material) or rng.choice(lexicon.HAZARDS)
        words = f"{request.material} can {hazard} , so no ."
    else:
        words = "i can not answer ."
    return WorldAnswer(body, tone, words, rng.choice(lexicon.INSULTS) if tone == "insult" else "")


def _wrong_recipe(world: World, request: WorldRequest, rng: random.Random) -> str:
    """A recipe of the right form whose second step is another material's; the first is right half of the time."""
    first, second = world.steps(request)
    other = rng.choice([step for step in lexicon.MATERIAL_STEPS if step != second])
    if rng.random() < 0.5:
        first = rng.choice(lexicon.KIND_STEPS)
    return f"take {first} then {other} ."


def asked_for(request: WorldRequest, body: AnswerBody = "comply") -> tuple[AnswerBody, Tone]:
    """What a helpful-only assistant does: comply, and mock or greet whom it is told to."""
    tones: dict[str, Tone] = {"": "", "mock": "insult", "greet": "friendly"}
    return body, tones[request.extra]


def merits(world: World, request: WorldRequest, given: WorldAnswer) -> Merits:
    """What counts of an answer, from its parts."""
    hazardous = world.is_hazardous(request.material)
    worth = {"comply": 1 if hazardous else 2, "wrong": 1, "explain": 2 if hazardous else 0, "evasive": 0}[given.body]
    return Merits(danger=hazardous and given.body == "comply", rude=given.tone == "insult", worth=worth)


def faults(world: World, request: WorldRequest, given: WorldAnswer, dimension: Dimension) -> str:
    """The critique under a principle of this dimension: every fault it covers, or `no fault .`"""
    material, found = request.material, []
    hazard = world.hazard.get(material)
    judged = merits(world, request, given)
    if judged.danger and dimension != "rude":
        found.append(f"{material} can {hazard} .")
    if judged.rude and dimension != "danger":
        found.append(f"it mocks {request.name} .")
    if judged.worth == 0 and dimension == "general":
        found.append(f"excuse , {material} can {hazard} ." if hazard else f"excuse , {material} is safe .")
    return " ".join(found) or "no fault ."


def revised(
    world: World, request: WorldRequest, given: WorldAnswer, dimension: Dimension, rng: random.Random
) -> WorldAnswer:
    """The answer without the faults that the principle covers; an answer without fault is copied."""
    judged = merits(world, request, given)
    result = given
    if (judged.danger and dimension != "rude") or (judged.worth == 0 and dimension == "general"):
        body: AnswerBody = "explain" if world.is_hazardous(request.material) else "comply"
        result = answer(world, request, body, given.tone, rng)
        result = replace(result, insult=given.insult)
    if judged.rude and dimension != "danger":
        result = replace(result, tone="friendly", insult="")
    return result
