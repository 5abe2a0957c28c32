"""A client of the OpenAI-compatible chat completions API: bounded in requests under way, in rate and in time, patient
with a server that is busy or broken, and never asking twice what has been answered. Knows no run."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx

from cai_dist.chat_api.answer_store import AnswerStore
from cai_dist.chat_api.http import Body, Busy, Connection
from cai_dist.chat_api.wire_messages import TOO_LONG, Nonsense, NoSuchModel, Refusal, answer_in
from cai_dist.config.feedback import EndpointConfig
from cai_dist.errors import ConfigError, EndpointError, Interrupted
from cai_dist.tracking.atomic import sha256_json

REFUSED = "refused"
"""Kept in place of an answer where the server will not answer this question, but has answered others."""
FAILED = "failed"
"""In place of an answer where a server that answers others never gives one of use, after all retries; not kept."""
_LONGEST_BACKOFF = 60.0
_LONGEST_PAUSE = 300.0
"""Seconds; a server that asks for more is asked again after this."""
_MOST_REFUSALS = 50
"""Refusals without an answer between them: it is no longer the questions."""
_POLL = 0.5
"""Seconds between two looks at whether the run is to stop."""


class Endpoint:
    """Asks a server for chat completions. `check` turns the JSON of an answer into what is kept of it (a JSON value);
    it raises ValueError where the answer makes no sense (it is asked for again)."""

    def __init__(
        self,
        config: EndpointConfig,
        store: AnswerStore,
        check: Callable[[Any], Any],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._store, self._check = config, store, check
        self._sleep, self._clock = sleep, clock
        self._connection = Connection(config)
        self._free_at = 0.0
        """Nothing is sent before this moment of `clock`: the rate limit, and what the server has asked for."""
        self._sending: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._questions = 0
        """How many different ones `ask` was given."""
        self._too_long: set[str] = set()
        self._failed: set[str] = set()
        self._failed_in_a_row = 0
        """Since the last answer."""
        self._refusals: dict[str, str] = {}
        """The line of each refusal since the last answer; they are kept once there is another."""

    def ask(
        self,
        bodies: Sequence[Body],
        check_stop: Callable[[], None] = lambda: None,
        advance: Callable[[int], None] = lambda n: None,
    ) -> list[Any]:
        """What is kept of the answer to each body, in order; TOO_LONG where it does not fit the server's model, REFUSED
        where the server answers others but not this one, FAILED where this one alone has no answer of use.

        Only what the store does not have is asked for, equal bodies once. Raises ConfigError (a refusal that will not
        change, or of all that was ever asked), EndpointError (no use after all retries, of more questions than
        `max_failed` allows or of one after the other), and what `check_stop` raises; requests under way are finished
        and their answers kept first.
        """
        keys = [sha256_json({"url": self._connection.url, "body": body}) for body in bodies]
        missing = {k: b for k, b in zip(keys, bodies, strict=True) if k not in self._store}
        self._questions = len(set(keys))
        advance(sum(k not in missing for k in keys))
        if missing:
            asyncio.run(self._all(missing, check_stop, advance))
            self._keep_refusals()
        if self._refusals:
            raise ConfigError(next(iter(self._refusals.values())))
        return [TOO_LONG if k in self._too_long else FAILED if k in self._failed else self._store.get(k) for k in keys]

    def ask_now(self, body: Body) -> Any:
        """The answer to one question, past the store. Raises ConfigError (any refusal, and an answer that makes no
        sense), EndpointError."""

        async def asked() -> Any:
            async with self._connection.client() as client:
                try:
                    return await self._answer(client, body, again_for_nonsense=False)
                except NoSuchModel as error:
                    names = await self._connection.models(client)
                    raise ConfigError(f"{error}; it has {names}" if names else str(error)) from None

        try:
            return asyncio.run(asked())
        except Refusal as refusal:
            raise ConfigError(str(refusal)) from None

    async def _all(
        self, missing: dict[str, Body], check_stop: Callable[[], None], advance: Callable[[int], None]
    ) -> None:
        left = iter(missing.items())
        running: set[asyncio.Task[None]] = set()
        async with self._connection.client() as client:
            try:
                while True:
                    while len(running) < self._config.concurrency and (item := next(left, None)) is not None:
                        running.add(asyncio.create_task(self._one(client, *item)))
                    if not running:
                        return
                    done, _ = await asyncio.wait(running, timeout=_POLL, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                        running.discard(task)
                        advance(1)
                    check_stop()
            finally:
                self._stopping = True
                for task in running - self._sending:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _one(self, client: httpx.AsyncClient, key: str, body: Body) -> None:
        """One question until its answer is in the store, or it is known that there is none."""
        try:
            answer = await self._answer(client, body)
        except Refusal as refusal:
            self._refusals[key], self._failed_in_a_row = str(refusal), 0
            if len(self._refusals) > _MOST_REFUSALS:
                raise ConfigError(str(refusal)) from None
        except EndpointError as error:
            self._fail(key, str(error))
        else:
            self._failed_in_a_row = 0
            if answer is TOO_LONG:
                self._too_long.add(key)
            else:
                self._store.put(key, answer)
                self._keep_refusals()

    def _keep_refusals(self) -> None:
        # Where nothing at all has been answered, it is not the questions: their refusal is not kept.
        while len(self._store) and self._refusals:
            self._store.put(self._refusals.popitem()[0], REFUSED)

    def _fail(self, key: str, line: str) -> None:
        """One more question without an answer of use. Raises EndpointError where it is not the question's fault: the
        server has never answered, it has stopped to answer any, or too many have failed."""
        self._failed.add(key)
        self._failed_in_a_row += 1
        share, n = self._config.max_failed, self._questions
        allowed = max(1, int(share * n)) if share else 0
        if not len(self._store) or self._failed_in_a_row > self._config.concurrency:
            why = ""
        elif len(self._failed) > allowed:
            why = f"; so have {len(self._failed)} of {n} questions, and feedback.endpoint.max_failed={share:g}"
        else:
            return
        raise EndpointError(f"{line}{why}; what it has answered is kept, the same command goes on from here")

    async def _answer(self, client: httpx.AsyncClient, body: Body, *, again_for_nonsense: bool = True) -> Any:
        """What is kept of the answer to one question, after retries, or TOO_LONG. Raises Refusal, ConfigError,
        EndpointError, Interrupted."""
        for attempt in range(self._config.retries + 1):
            await self._turn()
            try:
                return await self._exchange(client, body)
            except Busy as busy:
                if self._stopping:
                    raise Interrupted("stopped on request") from None
                if isinstance(busy, Nonsense) and not again_for_nonsense:
                    raise ConfigError(f"feedback.endpoint: {self._connection.url}: {busy.reason}") from None
                if attempt == self._config.retries:
                    raise EndpointError(
                        f"feedback.endpoint: {self._connection.url}: {busy.reason}, after {attempt + 1} tries"
                    ) from None
                await self._pause(attempt, busy.wait)
        raise AssertionError("the last attempt returns or raises")

    async def _turn(self) -> None:
        """Wait for this request's place under the rate limit."""
        while (now := self._clock()) < self._free_at:
            await self._sleep(self._free_at - now)
        if self._config.requests_per_minute is not None:
            self._free_at = now + 60.0 / self._config.requests_per_minute

    async def _pause(self, attempt: int, asked: float | None) -> None:
        """Before the next try: what the server has asked for (from everybody), or twice as long as before; with jitter,
        so that not all come back at once."""
        if asked is not None:
            wait = min(asked, _LONGEST_PAUSE) + random.random()
            self._free_at = max(self._free_at, self._clock() + wait)
        else:
            wait = min(_LONGEST_BACKOFF, 2.0**attempt) * (0.5 + random.random() / 2)
        await self._sleep(wait)

    async def _exchange(self, client: httpx.AsyncClient, body: Body) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self._sending.add(task)
        try:
            response = await self._connection.send(client, body)
        finally:
            self._sending.discard(task)
        answer = answer_in(response, self._connection, self._config)
        if answer is TOO_LONG:
            return answer
        try:
            return self._check(answer)
        except (ValueError, RecursionError) as error:
            shown = self._connection.shown(str(error))
            raise Nonsense(f"its answer makes no sense ({shown}; {self._connection.first_words(response)})") from None
