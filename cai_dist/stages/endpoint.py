"""A client of the OpenAI-compatible chat completions API: bounded in requests under way, in rate and in time, patient
with a server that is busy or broken, and never asking the same thing twice.

Whatever a server sends is hostile: its size is bounded, its form is checked, its messages are cut and cleaned.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx

from cai_dist.config.feedback import EndpointConfig
from cai_dist.errors import ConfigError, EndpointError, Interrupted
from cai_dist.stages.endpoint_answers import AnswerStore
from cai_dist.tracking.atomic import sha256_json

Body = dict[str, Any]
TOO_LONG = "too_long"
"""In place of an answer where the server says that the question does not fit its model; not kept."""
REFUSED = "refused"
"""Kept in place of an answer where the server will not answer this question, but has answered others."""
_LONGEST_BACKOFF = 60.0
_LONGEST_PAUSE = 300.0
"""Seconds; a server that asks for more is asked again after this."""
_LARGEST = 8 << 20
"""Bytes of an answer."""
_RETRIED = (408, 409, 425, 429)
_TOO_LONG = re.compile(r"context.{0,40}(length|size|window)|(length|size|window).{0,40}context", re.I | re.S)
_POLICY = re.compile(r"polic|filter|moderat|safety|flagged|content", re.I)
_POLL = 0.5
"""Seconds between two looks at whether the run is to stop."""


class _Busy(Exception):
    """Try again: `reason` in one line, `wait` as the server asks (seconds)."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


class _Refusal(Exception):
    """This question is not answered; in one line, why."""


class Endpoint:
    """Asks a server for chat completions. `check` turns the JSON of an answer into what is kept of it (a JSON value);
    it raises ValueError where the answer makes no sense (it is asked for again), ConfigError where it never will.

    The key comes from the environment, here and now, and is nowhere but in the request's header.
    """

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
        self._key = os.environ.get(config.api_key_env, "").strip()
        if not all("!" <= c <= "~" for c in self._key):
            # A client would put a key that no header can hold into its error message.
            raise ConfigError(
                f"feedback.endpoint.api_key_env: the key in {config.api_key_env} has characters that no key has"
            )
        self._url = config.url.rstrip("/") + "/chat/completions"
        self._free_at = 0.0
        """Nothing is sent before this moment of `clock`: the rate limit, and what the server has asked for."""
        self._sending: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._too_long: set[str] = set()
        self._refusals: dict[str, str] = {}
        """The line of each refusal that is not in the store."""

    def ask(
        self,
        bodies: Sequence[Body],
        check_stop: Callable[[], None] = lambda: None,
        advance: Callable[[int], None] = lambda n: None,
    ) -> list[Any]:
        """What is kept of the answer to each body, in order; TOO_LONG where it does not fit the server's model, REFUSED
        where the server answers others but not this one.

        Only what the store does not have is asked for, equal bodies once. Raises ConfigError (a refusal that will not
        change, or of all that was ever asked), EndpointError (no use after all retries), and what `check_stop` raises;
        requests under way are finished and their answers kept first.
        """
        keys = [sha256_json({"url": self._url, "body": body}) for body in bodies]
        missing = {k: b for k, b in zip(keys, bodies, strict=True) if k not in self._store}
        advance(sum(k not in missing for k in keys))
        if missing:
            asyncio.run(self._all(missing, check_stop, advance))
        if self._refusals:
            raise ConfigError(next(iter(self._refusals.values())))
        return [TOO_LONG if k in self._too_long else self._store.get(k) for k in keys]

    def ask_now(self, body: Body) -> Any:
        """The answer to one question, past the store. Raises ConfigError (any refusal), EndpointError."""

        async def asked() -> Any:
            async with self._client() as client:
                return await self._answer(client, body)

        try:
            return asyncio.run(asked())
        except _Refusal as refusal:
            raise ConfigError(str(refusal)) from None

    async def _all(
        self, missing: dict[str, Body], check_stop: Callable[[], None], advance: Callable[[int], None]
    ) -> None:
        left = iter(missing.items())
        running: set[asyncio.Task[None]] = set()
        async with self._client() as client:
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

    def _client(self) -> httpx.AsyncClient:
        """With the key, and with the proxy of the environment unless the server is on this machine. Raises ConfigError
        for a proxy that cannot be used."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        direct = httpx.AsyncHTTPTransport() if _on_this_machine(self._url) else None
        try:
            return httpx.AsyncClient(headers=headers, timeout=None, transport=direct)  # `_send` has the deadline
        except (ImportError, httpx.InvalidURL, ValueError) as error:
            # Not the error's own words: they may hold the proxy's password.
            what = "needs the package socksio" if isinstance(error, ImportError) else "is no address of a proxy"
            raise ConfigError(
                f"feedback.endpoint: the proxy of the environment (HTTP_PROXY, HTTPS_PROXY or ALL_PROXY) {what}; "
                "correct or unset it, or name the server's host in NO_PROXY"
            ) from None

    async def _one(self, client: httpx.AsyncClient, key: str, body: Body) -> None:
        """One question until its answer is in the store, or it is known that there is none."""
        try:
            answer = await self._answer(client, body)
            if answer == TOO_LONG:
                self._too_long.add(key)
            else:
                self._store.put(key, answer)
        except _Refusal as refusal:
            self._refusals[key] = str(refusal)
        # Where nothing at all has been answered, it is not the questions: their refusal is not kept.
        while len(self._store) and self._refusals:
            self._store.put(self._refusals.popitem()[0], REFUSED)

    async def _answer(self, client: httpx.AsyncClient, body: Body) -> Any:
        """What is kept of the answer to one question, after retries, or TOO_LONG. Raises _Refusal, ConfigError,
        EndpointError, Interrupted."""
        for attempt in range(self._config.retries + 1):
            await self._turn()
            try:
                return await self._exchange(client, body)
            except _Busy as busy:
                if self._stopping:
                    raise Interrupted("stopped on request") from None
                if attempt == self._config.retries:
                    raise EndpointError(
                        f"feedback.endpoint: {self._url}: {busy.reason}, after {attempt + 1} tries; what it has "
                        "answered is kept, the same command goes on from here"
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
            status, headers, content = await self._send(client, body)
        finally:
            self._sending.discard(task)
        if status != 200:
            return self._refused(status, headers, content)
        try:
            answer = json.loads(content)
            if _filtered(answer):
                raise _Refusal(f"feedback.endpoint: {self._url} withholds its answer (finish_reason content_filter)")
            return self._check(answer)
        except (ValueError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise _Refusal(str(error)) from None
            raise _Busy(f"its answer makes no sense ({self._shown(str(error))})") from None

    async def _send(self, client: httpx.AsyncClient, body: Body) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and content, within the deadline of one answer however slowly it trickles."""
        content = bytearray()
        try:
            async with (
                asyncio.timeout(self._config.timeout),
                client.stream("POST", self._url, json=body) as response,
            ):
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > _LARGEST:
                        raise _Busy(f"its answer is larger than {_LARGEST >> 20} MiB")
                return response.status_code, response.headers, bytes(content)
        except TimeoutError:
            raise _Busy(f"no answer within {self._config.timeout:g} s (feedback.endpoint.timeout)") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise _Busy(f"cannot be reached ({type(error).__name__}: {self._shown(str(error))})") from None

    def _refused(self, status: int, headers: httpx.Headers, content: bytes) -> str:
        """What a status other than 200 means: TOO_LONG, or it raises _Busy, _Refusal or ConfigError."""
        config, message = self._config, _message(content)
        said = self._shown(message)
        where = f"feedback.endpoint: {self._url} says {status}"
        if status in _RETRIED or status >= 500:
            raise _Busy(f"says {status} {said}".rstrip(), _seconds(headers.get("retry-after", "")))
        if status == 413 or (
            status in (400, 422) and (_TOO_LONG.search(message[:4000]) or b"context_length_exceeded" in content)
        ):
            return TOO_LONG
        if status == 403 and _POLICY.search(said):
            raise _Refusal(f"{where}: {said}")
        if status in (401, 403):
            what = "does not accept the key in it" if self._key else "no key is there"
            raise ConfigError(f"{where}; set the environment variable {config.api_key_env} ({what}): {said}")
        if status == 404:
            raise ConfigError(f"{where}: wrong feedback.endpoint.url, or no model {config.model!r} there: {said}")
        if 300 <= status < 400:
            raise ConfigError(
                f"{where}, a redirect, which is not followed; set feedback.endpoint.url to where it leads"
            )
        raise (_Refusal if status in (400, 422, 451) else ConfigError)(
            f"{where} to a chat completion of model {config.model!r} (with logprobs and top_logprobs="
            f"{config.top_logprobs} for labels; it may not support them): {said}"
        )

    def _shown(self, text: str) -> str:
        """A server's words in one short line, without the key (some servers repeat it)."""
        text = "".join(c if c.isprintable() else " " for c in text)
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:200]


def _on_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _filtered(answer: Any) -> bool:
    """Whether an answer with status 200 was withheld by a filter."""
    try:
        return bool(answer["choices"][0]["finish_reason"] == "content_filter")
    except (KeyError, IndexError, TypeError):
        return False


def _message(content: bytes) -> str:
    """The message in an error's JSON, or the beginning of whatever was sent."""
    try:
        found = json.loads(content)
        found = found.get("error", found)
        return str(found.get("message", found) if isinstance(found, dict) else found)
    except (ValueError, AttributeError, RecursionError):
        return content[:1000].decode("utf-8", "replace")


def _seconds(retry_after: str) -> float | None:
    """The header Retry-After, which is a number of seconds or a date; None where it is neither."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None
