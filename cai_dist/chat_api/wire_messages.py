"""What the response of a chat completions server means: an answer, a refusal of this question, a mistake of the
settings, or "try again". Knows no run."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from cai_dist.chat_api.http import Busy, Connection, Response
from cai_dist.config.feedback import EndpointConfig
from cai_dist.errors import ConfigError

TOO_LONG = "too_long"
"""In place of an answer where the server says that the question does not fit its model; not kept."""
_RETRIED = (408, 409, 425, 429)
_TOO_LONG = re.compile(
    r"context.{0,40}(length|size|window|overflow)|(length|size|window).{0,40}context"
    r"|(inputs?|prompt)\b.{0,40}(too long|less than|must be <=|longer than|exceed)",
    re.I | re.S,
)
_POLICY = re.compile(r"polic|filter|moderat|safety|flagged|content", re.I)
_HINTS = (
    (r"max_completion_tokens", "set feedback.endpoint.max_tokens_field=max_completion_tokens"),
    (r"top_logprobs|top_n_tokens|max.?logprobs|sample logprobs", "lower feedback.endpoint.top_logprobs"),
    (r"temperature", "set feedback.endpoint.min_temperature to the least that it allows, such as 0.01 or 1"),
    (r"\bseed\b", "set feedback.endpoint.extra_body={seed: null}, which leaves it out"),
    (r"api.?version", "set feedback.endpoint.api_version"),
    (r"api-key|subscription key", "set feedback.endpoint.api_key_header, such as to api-key"),
)
"""What to do where a server's message says so."""


class Nonsense(Busy):
    """A response with status 200 that is no usable answer; the next one may be."""


class Refusal(Exception):
    """This question is not answered; in one line, why."""


class NoSuchModel(ConfigError):
    """Status 404: the address or the model's name is wrong."""


def answer_in(response: Response, connection: Connection, config: EndpointConfig) -> Any:
    """The JSON of an answer, or TOO_LONG. Raises Busy, Nonsense, Refusal, ConfigError."""
    if response.status != 200:
        return _refused(response, response.status, connection, config)
    if response.kind == "text/event-stream":
        raise Nonsense(f"its answer is a stream, which was not asked for ({connection.first_words(response)})")
    try:
        answer = json.loads(response.content)
    except (ValueError, RecursionError):
        raise Nonsense(
            f"its answer makes no sense (no JSON; {connection.first_words(response)}); is feedback.endpoint.url the "
            "address of its API, such as http://host:port/v1?"
        ) from None
    if isinstance(answer, Mapping) and answer.get("error") and not answer.get("choices"):
        code = answer["error"].get("code") if isinstance(answer["error"], Mapping) else None
        if isinstance(code, int) and 400 <= code < 600:
            return _refused(response, code, connection, config)
        message = _message(response.content)
        if _TOO_LONG.search(message[:4000]):
            return TOO_LONG
        raise Nonsense(f"answers 200 with an error ({response.kind}: {connection.shown(message)})")
    if _filtered(answer):
        raise Refusal(f"feedback.endpoint: {connection.url} withholds its answer (finish_reason content_filter)")
    return answer


def _refused(response: Response, status: int, connection: Connection, config: EndpointConfig) -> str:
    """What a status other than 200 means: TOO_LONG, or it raises Busy, Refusal or ConfigError."""
    message = _message(response.content)
    said = connection.shown(message)
    where = f"feedback.endpoint: {connection.url} says {status}"
    advice = "".join(f"; {what}" for pattern, what in _HINTS if re.search(pattern, message[:4000], re.I))
    if status in _RETRIED or status >= 500:
        raise Busy(f"says {status} {said}".rstrip(), _seconds(response.headers.get("retry-after", "")))
    if status == 413 or (
        status in (400, 422) and (_TOO_LONG.search(message[:4000]) or b"context_length_exceeded" in response.content)
    ):
        return TOO_LONG
    if status == 403 and _POLICY.search(said):
        raise Refusal(f"{where}: {said}")
    if status in (401, 403):
        what = "does not accept the key in it" if connection.key else "no key is there"
        raise ConfigError(f"{where}; set the environment variable {config.api_key_env} ({what}): {said}{advice}")
    if status == 404:
        if not config.api_version and (urlsplit(config.url).hostname or "").endswith(".azure.com"):
            advice = "; set feedback.endpoint.api_version"
        raise NoSuchModel(f"{where}: wrong feedback.endpoint.url, or no model {config.model!r} there: {said}{advice}")
    if 300 <= status < 400:
        to = connection.shown(response.headers.get("location", "")) or "where it leads"
        raise ConfigError(
            f"{where}, a redirect, which is not followed; set feedback.endpoint.url to where it leads: {to}"
        )
    raise (Refusal if status in (400, 422, 451) else ConfigError)(
        f"{where} to a chat completion of model {config.model!r} (with logprobs and top_logprobs="
        f"{config.top_logprobs} for labels; it may not support them): {said}{advice}"
    )


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
