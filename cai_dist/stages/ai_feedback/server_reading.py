"""Reading a chat completion: its text, the probabilities of its first tokens, and what these say of two options.
Knows no run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai_dist.chat_api.http import escaped
from cai_dist.data.dialogues import safe_text
from cai_dist.stages.ai_feedback.option_words import core, keeps, names, says_nothing
from cai_dist.stages.ai_feedback.questions import LogProbs

ANSWER_TOKENS = 8
"""Enough for "The answer is: (A)"; an option that has not been named by then counts as none."""
NO_LOGPROBS = (
    "it gives no log-probabilities (choices[0].logprobs.content), without which there is no soft label; use a server "
    "and a model that do"
)
_NEVER = -9999.0
"""The log-probability that servers write for "not at all"."""
_IMPOSSIBLE = -1000.0
"""A log-probability that no softmax gives: exp of it is 0."""
_ROUNDING = 0.05
"""By how much probabilities may add up to more than 1."""
_SEEN = 3
Position = Sequence[tuple[str, float]]
"""(token, log-probability) of the alternatives at one place of an answer, the chosen token first."""


@dataclass(frozen=True)
class OptionReading:
    """What an answer says of the options: `logprobs` in nats, or None and in `problem` why not, in words."""

    logprobs: LogProbs | None
    problem: str = ""
    hard: bool = False
    """It names an option, but the server gives no probabilities of anything else."""


def read_text(answer: Any) -> dict[str, str]:
    """The text of an answer. Raises ValueError where there is none to be found."""
    message = _first(answer).get("message")
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(message, Mapping) or not isinstance(content, str | None):
        raise ValueError("choices[0].message.content is no text")
    return {"text": safe_text(content or "")}


def read_positions(answer: Any) -> list[list[tuple[str, float]]]:
    """The alternatives at each place of an answer, in the form of chat completions or in the older one of completions.
    Raises ValueError where there are none, or where they are no probabilities."""
    found = _first(answer).get("logprobs")
    if not isinstance(found, Mapping):
        raise ValueError(NO_LOGPROBS)
    content = found.get("content")
    if content is None and found.get("tokens"):
        content = _of_completions(found)
    if content is None:
        raise ValueError(NO_LOGPROBS)
    if not isinstance(content, list) or not all(isinstance(place, Mapping) for place in content):
        raise ValueError("choices[0].logprobs.content is no list of tokens")
    return [_alternatives(place) for place in content[:ANSWER_TOKENS]]


def option_logprobs(positions: Sequence[Position], labels: tuple[str, str]) -> LogProbs | None:
    """The log-probabilities of `read_options` alone."""
    return read_options(positions, labels).logprobs


def read_options(positions: Sequence[Position], labels: tuple[str, str]) -> OptionReading:
    """Log-probabilities of the two options over an answer's first tokens.

    Tokenizers and models spell an option in many ways ("A", " A", "(A", "**A**", "The answer is (A)"): the letters of
    the label alone count. While the chosen tokens say nothing yet ("(", "The"), their probability is carried on. No
    option is named where a word follows ("A good answer"), and there is no soft label where the server gives no live
    alternative to the token that names one.
    """
    cores = tuple(core(label) for label in labels)
    mass = [0.0, 0.0]
    said, path = "", 0.0
    for i, place in enumerate(positions):
        for token, logprob in place:
            option = names(said + token, cores)
            if option is not None:
                mass[option] += math.exp(path + logprob)
        chosen, logprob = place[0]
        said += chosen
        if names(said, cores) is not None:
            whole = said + "".join(later[0][0] for later in positions[i + 1 :])
            if not keeps(whole, cores):
                return OptionReading(None, f"the answer {escaped(whole)!r} names no option")
            if sum(p > _IMPOSSIBLE for _, p in place) < 2:
                return OptionReading(None, _hard(place), hard=True)
        if not says_nothing(said, cores):
            break
        path += logprob
    if not any(mass):
        return OptionReading(None, f"the answer {escaped(said)!r} names no option")
    return OptionReading(tuple(math.log(m) if m > 0.0 else -math.inf for m in mass))


def seen(positions: Sequence[Position]) -> str:
    """The likeliest first tokens of an answer with their probabilities, in one short line."""
    if not positions:
        return "no token at all"
    likeliest = sorted(positions[0], key=lambda x: -x[1])[:_SEEN]
    return ", ".join(f"'{escaped(token)[:40]}' {math.exp(p):.2g}" for token, p in likeliest)


def _hard(place: Position) -> str:
    """Why the alternatives at a place give no soft label."""
    token = escaped(place[0][0])
    if len(place) < 2:
        return f"the server gives no alternative to the token {token!r}"
    others = max(p for _, p in place[1:])
    return f"the server gives the token {token!r} all of the probability and {others:g} to the others"


def _first(answer: Any) -> Mapping[str, Any]:
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise ValueError("no choices[0]")
    return choices[0]


def _of_completions(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Log-probabilities in the form of the older completions API as those of chat completions. Raises ValueError."""
    tokens, own, others = (found.get(key) for key in ("tokens", "token_logprobs", "top_logprobs"))
    if not isinstance(tokens, list) or not isinstance(own, list) or not isinstance(others, list | None):
        raise ValueError("choices[0].logprobs.tokens and token_logprobs are no lists")
    others = others or [None] * len(tokens)
    if not len(tokens) == len(own) == len(others) or not all(isinstance(x, Mapping | None) for x in others):
        raise ValueError("choices[0].logprobs: tokens, token_logprobs and top_logprobs do not fit together")
    return [
        {"token": t, "logprob": p, "top_logprobs": [{"token": k, "logprob": v} for k, v in (x or {}).items()]}
        for t, p, x in zip(tokens, own, others, strict=True)
    ]


def _alternatives(place: Mapping[str, Any]) -> list[tuple[str, float]]:
    chosen = _alternative(place)
    others = place.get("top_logprobs") or []
    if not isinstance(others, list) or not all(isinstance(x, Mapping) for x in others):
        raise ValueError("top_logprobs is no list of tokens")
    found = [_alternative(x) for x in others]
    listed = [chosen, *(x for x in found if x[0] != chosen[0])]
    whole = sum(math.exp(p) for _, p in listed)
    if whole > 1.0 + _ROUNDING:
        raise ValueError(f"the probabilities of {len(listed)} alternatives add up to {whole:.3g}")
    return listed


def _alternative(entry: Mapping[str, Any]) -> tuple[str, float]:
    token, logprob = entry.get("token"), entry.get("logprob")
    if not isinstance(token, str) or isinstance(logprob, bool) or not isinstance(logprob, int | float):
        raise ValueError(f"the log-probability of a token is {_brief(logprob)}")
    if logprob != logprob or logprob > _ROUNDING:
        raise ValueError(f"the log-probability of a token is {_brief(logprob)}, which none can be")
    return token, float(max(_NEVER, min(0, logprob)))  # JSON has whole numbers that no float holds


def _brief(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return escaped(text)[:20]
