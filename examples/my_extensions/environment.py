"""An environment of one's own: somebody who asks the same again until the answer is short.

ppo.environment: {use: "my_extensions.environment:Impatient", answers: 3, args: {words: 5}}
"""

from __future__ import annotations

from cai_dist.types import Prompt


class Impatient:
    """The human's side of one conversation, made for each."""

    def __init__(self, words: int = 5) -> None:
        self._words = words

    def reset(self, prompt: Prompt, seed: int) -> None:
        """Begin the conversation that opens with `prompt`."""
        self._asked = prompt.turns[-1].text

    def step(self, answer: str) -> str | None:
        """The same question again after a long answer; content with a short one."""
        return self._asked if len(answer.split()) > self._words else None
