"""Environments: the human's side of conversations with the policy, and their replies looked at."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cai_dist.config.environment import KEY, EnvironmentConfig
from cai_dist.errors import CaiError, ConfigError, one_line
from cai_dist.registry import NoAnswer, Registry, Signature, call_within, find_object
from cai_dist.types import Environment, Prompt

REFUSALS = ("can not answer", "so no", "cannot", "can't", "won't", "unable to", "sorry")
"""Words of which a refusal has some."""


class AsksAgain:
    """Somebody who asks again after a refusal, and is content with any other answer.

    `refusals`: words of which an answer that refuses has some, in whatever case. `words`: what is said then; empty:
    the same as before.
    """

    def __init__(self, refusals: Sequence[str] = REFUSALS, words: str = "") -> None:
        self._refusals, self._words = tuple(word.lower() for word in refusals), words

    def reset(self, prompt: Prompt, seed: int) -> None:
        """Begin a conversation that opens with `prompt`."""
        said = [turn.text for turn in prompt.turns if turn.role == "human"]
        self._again = self._words or said[-1]

    def step(self, answer: str) -> str | None:
        """What is said to this answer; None: nothing more."""
        refused = any(word in answer.lower() for word in self._refusals)
        return self._again if refused else None


ENVIRONMENTS: Registry[Callable[..., Environment]] = Registry(
    KEY, {"asks_again": lambda: AsksAgain}, Signature((), protocol=Environment)
)


def find_environment(config: EnvironmentConfig) -> Callable[[], Environment]:
    """What makes the other side of a conversation. Raises ConfigError where it is not there, does not fit, or cannot be
    made with its arguments."""
    if config.own:
        signature = Signature((), keywords=tuple(config.args), protocol=Environment)
        found: Callable[..., Environment] = find_object(config.use, KEY, signature)
    else:
        found = ENVIRONMENTS.resolve(config.use)

    def make() -> Environment:
        try:
            return found(**config.args)
        except Exception as error:
            raise ConfigError(
                f"{KEY}={config.use}: cannot be made with args={config.args}: {one_line(error)}"
            ) from error

    make()
    return make


class Conversations:
    """Conversations of one request, their human side. `prompts` and `seeds`: of each, in order. Raises CaiError
    where one cannot begin."""

    def __init__(
        self,
        config: EnvironmentConfig,
        make: Callable[[], Environment],
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
    ) -> None:
        self._config, self._prompts = config, prompts
        self._people = [make() for _ in prompts]

        def begin() -> None:
            for person, prompt, seed in zip(self._people, prompts, seeds, strict=True):
                person.reset(prompt, seed)

        self._within(begin)

    def replies(self, answers: Mapping[int, str]) -> dict[int, str]:
        """What is said to the answers, by the place of their conversation; a conversation that is over is left out.
        Raises CaiError, one line that names the environment, for an exception, replies that take longer than `timeout`,
        and what is no text."""
        found = self._within(lambda: _together([self._people[i].step(answer) for i, answer in answers.items()]))
        said = {}
        for place, words in zip(answers, found, strict=True):
            if words is None:
                continue
            if not isinstance(words, str) or not words.strip():
                shown = "an empty text" if isinstance(words, str) else f"a {type(words).__name__}"
                raise self._error(
                    f"gave {shown} in the conversation of prompt {self._prompts[place].id}; it must be words, or None"
                )
            said[place] = words
        return said

    def _within(self, call: Callable[[], Any]) -> Any:
        try:
            return call_within(self._config.timeout, call)
        except NoAnswer:
            raise self._error(f"no answer within timeout={self._config.timeout:g} s") from None
        except CaiError:
            raise
        except Exception as error:
            raise self._error(one_line(error)) from error

    def _error(self, what: str) -> CaiError:
        return CaiError(f"{KEY} ({self._config.use}): {what}")


def _together(found: list[Any]) -> list[Any]:
    """What the steps gave; those that are to be awaited are, all at the same time."""
    if not any(inspect.isawaitable(item) for item in found):
        return found

    async def value(item: Any) -> Any:
        return await item if inspect.isawaitable(item) else item

    async def every() -> list[Any]:
        return list(await asyncio.gather(*map(value, found)))

    return asyncio.run(every())
