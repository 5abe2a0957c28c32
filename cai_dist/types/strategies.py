"""Protocols of plain callables that a run file may name by `package.module:object`."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from cai_dist.types.text import Prompt, Turn


class Reward(Protocol):
    """A reward term of PPO: one number a response. A function (sync or async), or a class that is made once in each
    worker with `args` as keywords and then called; a function gets `args` with every call."""

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], response_ids: Sequence[tuple[int, ...]]
    ) -> Sequence[float] | Awaitable[Sequence[float]]:
        """One finite number for each response, in their order.

        Args:
            prompts: of each response, its conversation (`turns`), `id` and `kind`. Where a sample has several turns
                (`ppo.environment`), all before the last answer belong to it.
            responses: the (last) answers in words, without thoughts before them and without special tokens.
            response_ids: the tokens as they were sampled, thoughts and end token included.
        """
        ...


class Environment(Protocol):
    """The human's side of one conversation after the first answer: a class that is made for each conversation, with
    `args` as keywords. What it says may depend on what it is told here alone, or a resumed run is another."""

    def reset(self, prompt: Prompt, seed: int) -> None:
        """Begin a conversation that opens with `prompt`. `seed`: the same whenever this sample is made."""
        ...

    def step(self, answer: str) -> str | None | Awaitable[str | None]:
        """The human's words after this answer of the model; None: the conversation is over."""
        ...


class FeedbackScorer(Protocol):
    """What compares two answers: a function, or a class that is made once without arguments and then called."""

    def __call__(
        self, questions: Sequence[tuple[Turn, ...]], options: tuple[str, str]
    ) -> Sequence[tuple[float, float] | None]:
        """For each question (worked examples first, the question last), the log-probabilities (nats) of the two
        options; None where it has no answer."""
        ...


class DataRows(Protocol):
    """A data source: rows as they would stand in a file of JSON lines; the same ones in every call."""

    def __call__(self) -> Iterable[Mapping[str, Any]]: ...
