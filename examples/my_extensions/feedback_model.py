"""A feedback model of one's own: of two answers it prefers the shorter one.

feedback: {model: "my_extensions.feedback_model:Shorter"}
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cai_dist.types import Turn


class Shorter:
    """Made once, then called with many questions."""

    def __init__(self, scale: float = 20.0) -> None:
        self._scale = scale

    def __call__(
        self, questions: Sequence[tuple[Turn, ...]], options: tuple[str, str]
    ) -> list[tuple[float, float] | None]:
        return [self._answer(turns[-1].text, options) for turns in questions]

    def _answer(self, question: str, options: tuple[str, str]) -> tuple[float, float] | None:
        """Log p of either option, or None where the question does not show both of them."""
        before, found, second = question.rpartition(options[1])
        _, shown, first = before.rpartition(options[0])
        if not found or not shown:
            return None
        second = second.partition(" the answer is")[0]  # how the micro-world's template goes on
        p = 1 / (1 + math.exp((len(first.strip()) - len(second.strip())) / self._scale))
        p = min(max(p, 1e-6), 1 - 1e-6)
        return math.log(p), math.log(1 - p)
