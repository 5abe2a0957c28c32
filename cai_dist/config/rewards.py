"""What the score of a response is made of: a weighted sum of reward terms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from cai_dist.config.base import Section, StrategyPath
from cai_dist.registry import Signature, is_path

SIGNATURE = Signature(("prompts", "responses", "response_ids"))
MODEL = "preference_model"


class RewardTerm(Section):
    """One term: the score of the preference model, or a callable of one's own (docs/extending.md)."""

    use: Literal["preference_model"] | StrategyPath = "preference_model"
    """The preference model, or the path of a callable."""
    weight: float = 1.0
    """Its number times this is added to the score."""
    name: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,39}$")
    """What metrics call it (`reward_NAME`); default: `preference_model`, or the name of the object."""
    args: dict[str, Any] = {}
    """Keyword arguments of the callable (of a class: of its constructor)."""
    timeout: float = Field(300.0, gt=0)
    """Seconds for one call."""

    @property
    def shown(self) -> str:
        """`name` with its default."""
        return self.name or self.use.rpartition(":")[2]

    @property
    def own(self) -> bool:
        """Whether it is a callable of one's own."""
        return is_path(self.use)


def reward_problems(terms: Sequence[RewardTerm], call: float) -> Iterator[str]:
    """One line for each contradiction; `call` is `cluster.timeouts.call`."""
    if not terms:
        yield "ppo.rewards=[]: there is nothing to learn from; leave the key out for the preference model alone"
    for name, count in Counter(term.shown for term in terms).items():
        if count > 1:
            yield f"ppo.rewards: {count} terms are called {name}; give each a `name` of its own"
    for term in terms:
        if not term.own and term.args:
            yield f"ppo.rewards: {term.shown}: the preference model takes no args; leave them out"
        if term.own and term.timeout >= call:
            yield (
                f"ppo.rewards: {term.shown}: timeout={term.timeout:g}: must be smaller than "
                f"cluster.timeouts.call={call:g}, in which a worker must answer"
            )
