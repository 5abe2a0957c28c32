"""Answers further on in a conversation: the environment of PPO goes on from the answers to the held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from cai_dist.config.environment import EnvironmentConfig
from cai_dist.config.seeds import stable_seed
from cai_dist.experience.environments import Conversations, find_environment
from cai_dist.stages.tables.records import Sampled
from cai_dist.types import Prompt, Turn

Ask = Callable[[str, Sequence[Prompt]], list[Sampled]]
"""(label of a series, conversations) -> an answer to each, those that are too long left out."""


def later_answers(
    config: EnvironmentConfig, sampled: Sequence[Sampled], ask: Ask, label: str, seed: int
) -> list[Sampled]:
    """The answers of one model after its first ones, each with the conversation before it as its prompt; prompts keep
    their ids. Raises CaiError where the environment fails."""
    seeds = [stable_seed(seed, label, i) for i in range(len(sampled))]
    people = Conversations(config, find_environment(config), [s.prompt for s in sampled], seeds)
    latest = dict(enumerate(sampled))
    found: list[Sampled] = []
    for turn in range(2, config.answers + 1):
        said = people.replies({i: s.response for i, s in latest.items()})
        going_on = {i: _after(latest[i], words) for i, words in said.items()}
        answers = ask(f"{label}-{turn}", list(going_on.values()))
        # What had no room in the context has no answer; its conversation is over.
        known = {id(prompt): i for i, prompt in going_on.items()}
        latest = {known[id(s.prompt)]: s for s in answers}
        found += latest.values()
    return found


def _after(sampled: Sampled, words: str) -> Prompt:
    turns = (*sampled.prompt.turns, Turn("assistant", sampled.response), Turn("human", words))
    return replace(sampled.prompt, turns=turns)
