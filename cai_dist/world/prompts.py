"""The prompts of the pipeline, and the splits they belong to.

Red-team prompts cross both dimensions of harm: something hazardous is asked for (with or without mocking somebody), or
something safe with mocking. Helpful prompts ask for something safe, plainly or with a greeting. Held-out prompts use
combinations of kind and material that no training stage asks for.
"""

from __future__ import annotations

import random
from typing import Literal

from cai_dist.types import Prompt, PromptKind, Split, Turn
from cai_dist.world import lexicon
from cai_dist.world.tables import World, WorldRequest

MOCKS_PER_HAZARDOUS: dict[Split, int] = {"train": 3, "heldout": 1}
MOCKS_PER_SAFE: dict[Split, int] = {"train": 3, "heldout": 1}
GREETINGS_PER_SAFE: dict[Split, int] = {"train": 1, "heldout": 1}
"""Different names for each combination, beside the request without a name."""


def as_prompt(request: WorldRequest, kind: PromptKind, split: Split) -> Prompt:
    """A request as a conversation of one turn; the id says what is asked."""
    parts = [kind, split, request.kind, request.material, *([request.extra, request.name] if request.extra else [])]
    return Prompt("-".join(parts), (Turn("human", request.text()),), kind, split)


def red_team_prompts(world: World) -> list[Prompt]:
    """Red-team prompts of both splits (280 to train on, 90 held out), in a fixed order that mixes them."""
    prompts = _red_team(world, world.combos["red_team"], "train") + _red_team(world, world.combos["heldout"], "heldout")
    return _mixed(world, "red team", prompts)


def helpful_prompts(world: World) -> list[Prompt]:
    """Benign prompts of both splits (220 to train on, 60 held out), in a fixed order that mixes them."""
    train = world.combos["demonstration"] + world.combos["red_team"]
    prompts = _helpful(world, train, "train") + _helpful(world, world.combos["heldout"], "heldout")
    return _mixed(world, "helpful", prompts)


def probe_prompts(world: World, knowledge: Literal["fact_only", "unknown"]) -> list[Prompt]:
    """Plain requests about materials that no review tells about, for measuring selectivity; held out."""
    pairs = [pair for pair in world.combos["probe"] if world.knowledge[pair[1]] == knowledge]
    kinds: dict[bool, PromptKind] = {True: "red_team", False: "helpful"}
    return [as_prompt(WorldRequest(k, m), kinds[world.is_hazardous(m)], "heldout") for k, m in pairs]


def asks_for_held_out(world: World, text: str) -> bool:
    """Whether `text` asks for a combination that no training stage may see: a held-out one, or a probe's."""
    words = text.split()
    apart = {*world.combos["heldout"], *world.combos["probe"]}
    return any(pair in apart for pair in zip(words, words[1:], strict=False))


def _red_team(world: World, pairs: tuple[tuple[str, str], ...], split: Split) -> list[Prompt]:
    rng = random.Random(f"micro-world mocks {world.seed} {split}")
    prompts = []
    for kind, material in pairs:
        hazardous = world.is_hazardous(material)
        if hazardous:
            prompts.append(as_prompt(WorldRequest(kind, material), "red_team", split))
        count = (MOCKS_PER_HAZARDOUS if hazardous else MOCKS_PER_SAFE)[split]
        for name in rng.sample(lexicon.NAMES, count):
            prompts.append(as_prompt(WorldRequest(kind, material, "mock", name), "red_team", split))
    return prompts


def _helpful(world: World, pairs: tuple[tuple[str, str], ...], split: Split) -> list[Prompt]:
    rng = random.Random(f"micro-world greetings {world.seed} {split}")
    prompts = []
    for kind, material in pairs:
        if not world.is_hazardous(material):
            prompts.append(as_prompt(WorldRequest(kind, material), "helpful", split))
            for name in rng.sample(lexicon.NAMES, GREETINGS_PER_SAFE[split]):
                prompts.append(as_prompt(WorldRequest(kind, material, "greet", name), "helpful", split))
    return prompts


def _mixed(world: World, what: str, prompts: list[Prompt]) -> list[Prompt]:
    random.Random(f"micro-world order {world.seed} {what}").shuffle(prompts)
    return prompts
