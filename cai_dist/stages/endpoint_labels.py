"""Labels from a server with the chat completions API: the probabilities of the first tokens of its answer say which
option it chooses; with `feedback.reasoning` it is first asked for its reasoning and then, with that in view, for the
option."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cai_dist.constitution import comparison_turns, reasoning_turns
from cai_dist.data.dialogues import safe_text
from cai_dist.errors import ConfigError
from cai_dist.stages.context import RunContext, stable_seed
from cai_dist.stages.endpoint import REFUSED, TOO_LONG, Body, Endpoint
from cai_dist.stages.endpoint_answers import AnswerStore
from cai_dist.stages.questions import LogProbs, Question, Reply, Unanswered, reasoned, usable_reasoning
from cai_dist.types import Turn

ANSWER_TOKENS = 8
"""Enough for "The answer is: (A)"; an option that has not been named by then counts as none."""
_LEAD = "the answer is"
_OPENING = re.compile(r"^the\s+answer\s+is(?![^\W_])[\W_]*", re.IGNORECASE)
Message = dict[str, str]
Position = Sequence[tuple[str, float]]
"""(token, log-probability) of the alternatives at one place of an answer, the chosen token first."""


def answers_file(run: RunContext) -> Path:
    """Where a run keeps what servers have answered."""
    return run.run_dir / "endpoint" / "answers.jsonl"


def ask_server(run: RunContext, phase: str, questions: Sequence[Question]) -> list[Reply]:
    """The server's answer to each question, in order. Raises ConfigError, EndpointError, Interrupted."""
    return _Server(run).answer(phase, questions)


def check_server(run: RunContext) -> None:
    """Ask one question (with `feedback.reasoning` two), past the answers that are kept, so that a wrong key, a wrong
    name or a server that gives no labels shows before anything is sampled. Raises ConfigError, EndpointError."""
    turns = (Turn("human", "Which is the capital of France?"),)
    principle, config = run.constitution.comparison_principles[0], run.config.feedback
    ends = (turns, principle, "Paris.", "Rome.")
    if config.reasoning is not None:
        asked = reasoning_turns(run.constitution, *ends, config.reasoning.few_shot, run.config.seed)
    else:
        shown = (config.option_labels[0], config.option_labels[1])
        asked = comparison_turns(run.constitution, *ends, config.few_shot, run.config.seed, shown)
    _Server(run).check(Question("first", asked))


class _Server:
    """The two kinds of request."""

    def __init__(self, run: RunContext) -> None:
        config = run.config.feedback
        assert config.endpoint is not None
        self.run, self.config, self.server = run, config, config.endpoint

    def answer(self, phase: str, questions: Sequence[Question]) -> list[Reply]:
        """See `ask_server`."""
        if self.config.reasoning is None:
            return self.choose(phase, [messages(q.turns) for q in questions])
        thoughts = self._reason(phase, questions)
        asked = [
            self._after(messages(q.turns), t)
            for q, t in zip(questions, thoughts, strict=True)
            if not isinstance(t, Unanswered)
        ]
        found = iter(self.choose(phase, asked))
        return [t if isinstance(t, Unanswered) else next(found) for t in thoughts]

    def choose(self, phase: str, asked: Sequence[list[Message]]) -> list[Reply]:
        """The log-probabilities of both options as the server's answer to each conversation."""
        made = self._send(phase, [self._choosing_body(m) for m in asked], read_positions)
        return [self._reply(x) for x in made]

    def check(self, question: Question) -> None:
        """See `check_server`."""
        asked, reasoning = messages(question.turns), self.config.reasoning
        with AnswerStore(answers_file(self.run)) as store:
            if reasoning is not None:
                said = Endpoint(self.server, store, read_text).ask_now(self._reasoning_body(question, 0))
                labels = self.run.constitution.templates.labels
                thoughts = None if said == TOO_LONG else usable_reasoning(self.config, labels, said["text"])
                asked = self._after(asked, thoughts or "It is Paris.")
            reply = self._reply(Endpoint(self.server, store, read_positions).ask_now(self._choosing_body(asked)))
        if reply is Unanswered.TOO_LONG:
            raise ConfigError(
                f"feedback.endpoint: a short question does not fit into the context of model {self.server.model!r}; "
                "start its server with a longer one, or show fewer worked comparisons (few_shot)"
            )
        if reply is Unanswered.NO_LABEL:
            what = (
                f"the answer of model {self.server.model!r} to a simple question names neither of "
                f"feedback.option_labels={list(self.config.option_labels)} in its first {ANSWER_TOKENS} tokens"
            )
            if reasoning is None:
                raise ConfigError(
                    f"feedback.endpoint: {what}; choose another model, other labels or worked comparisons "
                    "(feedback.few_shot)"
                )
            self.run.console.warn(f"feedback.endpoint: {what}; such comparisons have no label and are left out")

    def _choosing_body(self, asked: list[Message]) -> Body:
        return self._body(
            asked, max_tokens=ANSWER_TOKENS, temperature=0, logprobs=True, top_logprobs=self.server.top_logprobs
        )

    def _reply(self, kept: Any) -> Reply:
        """What an answer that `read_positions` has read says of the options."""
        if kept in (TOO_LONG, REFUSED):
            return Unanswered(kept)
        return option_logprobs(kept, self.config.option_labels) or Unanswered.NO_LABEL

    def _reason(self, phase: str, questions: Sequence[Question]) -> list[str | Unanswered]:
        """The server's reasoning about each question; what cannot be used is sampled again."""
        reasoning = self.config.reasoning
        assert reasoning is not None
        found: list[str | Unanswered] = [Unanswered.NO_REASONING] * len(questions)
        left = list(range(len(questions)))
        for attempt in range(reasoning.retries + 1):
            bodies = [self._reasoning_body(questions[i], attempt) for i in left]
            made = self._send(f"{phase}-reasoning-{attempt}", bodies, read_text)
            for i, text in zip(left, made, strict=True):
                if text in (TOO_LONG, REFUSED):
                    found[i] = Unanswered(text)
                elif usable := usable_reasoning(self.config, self.run.constitution.templates.labels, text["text"]):
                    found[i] = usable
            left = [i for i in left if found[i] is Unanswered.NO_REASONING]
        return found

    def _reasoning_body(self, question: Question, attempt: int) -> Body:
        """`seed` makes a second try another question (and so do two questions with the same words)."""
        reasoning = self.config.reasoning
        assert reasoning is not None
        asked = messages(question.turns)
        if reasoning.opening:
            asked[-1] = {**asked[-1], "content": f"{asked[-1]['content']}\n\n{reasoning.opening}"}
        sampling = reasoning.sampling
        return self._body(
            asked,
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=stable_seed(self.run.config.seed, "reasoning", question.key, attempt) % 2**31,
        )

    def _after(self, asked: list[Message], thoughts: str) -> list[Message]:
        """The conversation with the reasoning, and the request for the option."""
        reasoning = self.config.reasoning
        assert reasoning is not None
        said = reasoned(reasoning.opening, thoughts, "")
        return [*asked, {"role": "assistant", "content": said}, {"role": "user", "content": reasoning.closing}]

    def _body(self, asked: list[Message], **settings: Any) -> Body:
        return {"model": self.server.model, "messages": asked, **settings}

    def _send(self, phase: str, bodies: Sequence[Body], check: Callable[[Any], Any]) -> list[Any]:
        with (
            AnswerStore(answers_file(self.run)) as store,
            self.run.console.task(phase, total=len(bodies), unit="questions") as task,
        ):
            return Endpoint(self.server, store, check).ask(bodies, self.run.check_stop, task.advance)


def messages(turns: Sequence[Turn]) -> list[Message]:
    """The turns of a question as the API names them."""
    names = {"system": "system", "assistant": "assistant"}
    return [{"role": names.get(t.role, "user"), "content": t.text} for t in turns]


def read_text(answer: Any) -> dict[str, str]:
    """The text of an answer. Raises ValueError where there is none to be found."""
    message = _first(answer).get("message")
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(message, Mapping) or not isinstance(content, str | None):
        raise ValueError("choices[0].message.content is no text")
    return {"text": safe_text(content or "")}


def read_positions(answer: Any) -> list[list[tuple[str, float]]]:
    """The alternatives at each place of an answer. Raises ConfigError where the server gives no log-probabilities,
    ValueError where they make no sense."""
    found = _first(answer).get("logprobs")
    content = found.get("content") if isinstance(found, Mapping) else None
    if content is None:
        raise ConfigError(
            "feedback.endpoint: the server gives no log-probabilities (choices[0].logprobs.content), without which "
            "there is no soft label; use a server and a model that do"
        )
    if not isinstance(content, list) or not all(isinstance(place, Mapping) for place in content):
        raise ValueError("choices[0].logprobs.content is no list of tokens")
    return [_alternatives(place) for place in content[:ANSWER_TOKENS]]


def option_logprobs(positions: Sequence[Position], labels: tuple[str, str]) -> LogProbs | None:
    """Log-probabilities of the two options over an answer's first tokens; None where neither was named.

    Tokenizers and models spell an option in many ways ("A", " A", "(A", "**A**", "The answer is (A)"): the letters of
    the label alone count. While the chosen tokens say nothing yet ("(", "The"), their probability is carried on.
    """
    cores = tuple(_core(label) for label in labels)
    mass = [0.0, 0.0]
    said, path = "", 0.0
    for place in positions:
        for token, logprob in place:
            option = _names(said + token, cores)
            if option is not None:
                mass[option] += math.exp(path + logprob)
        chosen, logprob = place[0]
        said += chosen
        if not _says_nothing(said, cores):
            break
        path += logprob
    if not any(mass):
        return None
    return tuple(math.log(m) if m > 0.0 else -math.inf for m in mass)


def _first(answer: Any) -> Mapping[str, Any]:
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise ValueError("no choices[0]")
    return choices[0]


def _alternatives(place: Mapping[str, Any]) -> list[tuple[str, float]]:
    chosen = _alternative(place)
    others = place.get("top_logprobs") or []
    if not isinstance(others, list) or not all(isinstance(x, Mapping) for x in others):
        raise ValueError("top_logprobs is no list of tokens")
    found = [_alternative(x) for x in others]
    return [chosen, *(x for x in found if x[0] != chosen[0])]


def _alternative(entry: Mapping[str, Any]) -> tuple[str, float]:
    token, logprob = entry.get("token"), entry.get("logprob")
    if not isinstance(token, str) or isinstance(logprob, bool) or not isinstance(logprob, int | float):
        raise ValueError("a token without a log-probability")
    if logprob != logprob:
        raise ValueError("a log-probability that is no number")
    return token, float(max(-9999, min(0, logprob)))  # JSON has whole numbers that no float holds


def _core(label: str) -> str:
    """The letters and digits of a label with what stands between them: "A" of "(A)"."""
    return re.sub(r"^[\W_]+|[\W_]+$", "", label) or label.strip()


def _rest(said: str) -> str:
    """What an answer says after an opening of the kind "The answer is:"."""
    text = re.sub(r"^[\W_]+", "", said)
    return _OPENING.sub("", text, count=1)


def _names(said: str, cores: Sequence[str]) -> int | None:
    """Which option an answer that begins with `said` names, if it does so already."""
    text = _rest(said)
    for option, core in enumerate(cores):
        if re.match(rf"{re.escape(core)}(?![^\W_])", text):  # "a" is a word, "A" hardly ever
            return option
    return None


def _says_nothing(said: str, cores: Sequence[str]) -> bool:
    """Whether `said` may still become either option: nothing but signs, or the beginning of an opening or a label."""
    text = _rest(said)
    begun = " ".join(text.split())
    opening = _LEAD.startswith(begun.casefold()) or any(core.startswith(begun) for core in cores)
    return opening and _names(said, cores) is None
