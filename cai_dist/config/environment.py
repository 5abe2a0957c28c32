"""Settings of PPO's environment: who goes on talking to the policy, so that a sample is a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from cai_dist.config.base import Section, StrategyPath
from cai_dist.registry import is_path

KEY = "ppo.environment"


class EnvironmentConfig(Section):
    """An environment of PPO: the human's side of a conversation after its first answer (docs/extending.md)."""

    use: Literal["asks_again"] | StrategyPath = "asks_again"
    """`asks_again`: somebody who says the same again after a refusal; or the path of a class of one's own."""
    args: dict[str, Any] = {}
    """Keyword arguments of the class, which is made once for each conversation."""
    answers: int = Field(2, ge=2, le=100)
    """Answers of the model in one conversation, at most. It also ends where the other side has no more to say, where
    an answer was cut off at `max_new_tokens`, and where `models.context` leaves no room for another."""
    timeout: float = Field(60.0, gt=0)
    """Seconds for the replies to all the answers of one request."""

    @property
    def own(self) -> bool:
        """Whether it is a class of one's own."""
        return is_path(self.use)

    @property
    def decides(self) -> dict[str, Any]:
        """The settings on which samples depend, for fingerprints."""
        return self.model_dump(mode="json", exclude={"timeout"})


def environment_problems(config: EnvironmentConfig | None, schedule: str, call: float) -> Iterator[str]:
    """One line for each contradiction; `call` is `cluster.timeouts.call`."""
    if config is None:
        return
    if schedule == "partial":
        yield (
            f"{KEY}.use={config.use}: cannot be with ppo.schedule=partial, which pauses inside an answer; set "
            "ppo.schedule to sync or one_step_off"
        )
    if config.timeout >= call:
        yield (
            f"{KEY}.timeout={config.timeout:g}: must be smaller than cluster.timeouts.call={call:g}, in which a worker "
            "must answer"
        )
