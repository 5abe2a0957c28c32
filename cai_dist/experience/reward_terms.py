"""Reward terms of one's own: made once in a process, called with a deadline, and their answers looked at."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from cai_dist.config.rewards import SIGNATURE, RewardTerm
from cai_dist.errors import CaiError, ConfigError, one_line
from cai_dist.registry import NoAnswer, call_within, find_object
from cai_dist.types import Prompt

KEY = "ppo.rewards"


class TermScores(NamedTuple):
    """What one term said of some responses."""

    name: str
    numbers: tuple[float, ...]
    seconds: float


class OwnTerm:
    """A reward term of one's own, found and made. Raises ConfigError where it is not there or cannot be made."""

    def __init__(self, term: RewardTerm) -> None:
        self._term, self.name = term, term.shown
        found = find_object(term.use, KEY)
        try:
            self._call: Callable[..., Any] = found(**term.args) if isinstance(found, type) else found
        except Exception as error:
            raise ConfigError(f"{KEY}={term.use}: cannot be made with args={term.args}: {one_line(error)}") from error
        if problem := replace(SIGNATURE, keywords=tuple(self._args)).problem(self._call):
            raise ConfigError(f"{KEY}={term.use}: {problem}")

    @property
    def _args(self) -> dict[str, Any]:
        return self._term.args if inspect.isroutine(self._call) else {}

    def scores(
        self, prompts: Sequence[Prompt], responses: Sequence[str], response_ids: Sequence[tuple[int, ...]]
    ) -> TermScores:
        """One number a response. Raises CaiError, one line that names the term, for an exception, a call that takes
        longer than `timeout`, a wrong count, and what is no finite number."""
        began = time.perf_counter()
        call = partial(self._call, prompts, responses, response_ids, **self._args)
        try:
            found = call_within(self._term.timeout, call)
        except NoAnswer:
            raise self._error(f"no answer within timeout={self._term.timeout:g} s") from None
        except Exception as error:
            raise self._error(one_line(error)) from error
        try:
            numbers = tuple(float(number) for number in found)
        except (TypeError, ValueError) as error:
            raise self._error(f"must give one number a response: {one_line(error)}") from error
        if len(numbers) != len(responses):
            raise self._error(f"gave {len(numbers)} numbers for {len(responses)} responses")
        for prompt, number in zip(prompts, numbers, strict=True):
            if not math.isfinite(number):
                raise self._error(f"gave {number} for a response to prompt {prompt.id}; every number must be finite")
        return TermScores(self.name, numbers, time.perf_counter() - began)

    def _error(self, what: str) -> CaiError:
        return CaiError(f"reward term {self.name} ({self._term.use}): {what}")
