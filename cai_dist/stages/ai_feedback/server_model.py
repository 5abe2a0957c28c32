"""Labels from a server with the chat completions API: the probabilities of the first tokens of its answer say which
option it chooses; with `feedback.reasoning` it is first asked for its reasoning and then, with that in view, for the
option."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cai_dist.chat_api.answer_store import AnswerStore
from cai_dist.chat_api.client import FAILED, REFUSED, Endpoint
from cai_dist.chat_api.http import Body
from cai_dist.chat_api.wire_messages import TOO_LONG
from cai_dist.config.seeds import stable_seed
from cai_dist.errors import ConfigError
from cai_dist.stages.ai_feedback.first_question import first_question, low_mass
from cai_dist.stages.ai_feedback.questions import Question, Reply, Unanswered, option_mass, reasoned, usable_reasoning
from cai_dist.stages.ai_feedback.server_reading import ANSWER_TOKENS, read_options, read_positions, read_text, seen
from cai_dist.stages.context import RunContext
from cai_dist.types import Turn

ChatMessage = dict[str, str]


def answers_file(ctx: RunContext) -> Path:
    """Where a run keeps what servers have answered."""
    return ctx.paths.endpoint_answers


def ask_server(ctx: RunContext, phase: str, questions: Sequence[Question]) -> list[Reply]:
    """The server's answer to each question, in order. Raises ConfigError, EndpointError, Interrupted."""
    return _Server(ctx).answer(phase, questions)


def seen_at_server(ctx: RunContext, phase: str, question: Question) -> str:
    """What the server says to `question` (which it has answered: nothing new is asked), in one line."""
    return _Server(ctx).seen(phase, question)


def check_server(ctx: RunContext) -> None:
    """Ask one question (with `feedback.reasoning` two), past the answers that are kept, so that a wrong key, a wrong
    name or a server that gives no labels shows before anything is sampled. Where the answer names no option, or both
    with too little probability, the other order is asked before it counts. Raises ConfigError, EndpointError."""
    server = _Server(ctx)
    if server.check(first_question(ctx, swapped=False)) and (
        problem := server.check(first_question(ctx, swapped=True))
    ):
        raise ConfigError(f"feedback.endpoint: model {server.server.model!r}: {problem}")


class _Server:
    """The two kinds of request."""

    def __init__(self, ctx: RunContext) -> None:
        config = ctx.config.feedback
        assert config.endpoint is not None
        self.run, self.config, self.server = ctx, config, config.endpoint

    def answer(self, phase: str, questions: Sequence[Question]) -> list[Reply]:
        """See `ask_server`."""
        return [x if isinstance(x, Unanswered) else self._reply(x) for x in self._answers(phase, questions)]

    def seen(self, phase: str, question: Question) -> str:
        """See `seen_at_server`."""
        [kept] = self._answers(phase, [question])
        return str(kept) if isinstance(kept, Unanswered) else self._problem(kept)

    def check(self, question: Question) -> str:
        """Why the answer to `question` gives no label; "" where it gives one. Raises ConfigError, EndpointError."""
        asked, reasoning = messages(question.turns), self.config.reasoning
        with AnswerStore(answers_file(self.run)) as store:
            if reasoning is not None:
                said = Endpoint(self.server, store, read_text).ask_now(self._reasoning_body(question, 0))
                labels = self.run.constitution.templates.labels
                thoughts = None if said == TOO_LONG else usable_reasoning(self.config, labels, said["text"])
                asked = self._after(asked, thoughts or "It is Paris.")
            kept = Endpoint(self.server, store, read_positions).ask_now(self._choosing_body(asked))
        if kept == TOO_LONG:
            raise ConfigError(
                f"feedback.endpoint: a short question does not fit into the context of model {self.server.model!r}; "
                "start its server with a longer one, or show fewer worked comparisons (few_shot)"
            )
        return self._problem(kept)

    def _answers(self, phase: str, questions: Sequence[Question]) -> list[Any]:
        """What is kept of the answer to each question, or why there is none."""
        if self.config.reasoning is None:
            return self._choose(phase, [messages(q.turns) for q in questions])
        thoughts = self._reason(phase, questions)
        asked = [
            self._after(messages(q.turns), t)
            for q, t in zip(questions, thoughts, strict=True)
            if not isinstance(t, Unanswered)
        ]
        found = iter(self._choose(phase, asked))
        return [t if isinstance(t, Unanswered) else next(found) for t in thoughts]

    def _choose(self, phase: str, asked: Sequence[list[ChatMessage]]) -> list[Any]:
        made = self._send(phase, [self._choosing_body(m) for m in asked], read_positions)
        return [Unanswered(x) if x in (TOO_LONG, REFUSED, FAILED) else x for x in made]

    def _choosing_body(self, asked: list[ChatMessage]) -> Body:
        return self._body(asked, ANSWER_TOKENS, 0, logprobs=True, top_logprobs=self.server.top_logprobs)

    def _reply(self, kept: Any) -> Reply:
        """What an answer that `read_positions` has read says of the options."""
        return read_options(kept, self.config.option_labels).logprobs or Unanswered.NO_LABEL

    def _problem(self, kept: Any) -> str:
        """Why an answer gives no label, what it says and what to do, in words; "" where it gives one."""
        found, config = read_options(kept, self.config.option_labels), self.config
        mass = 0.0 if found.logprobs is None else option_mass(found.logprobs)
        if found.hard:
            return (
                f"{found.problem} ({self.server.top_logprobs} asked for), which is no soft label; where it gives what "
                "greedy sampling leaves set feedback.endpoint.min_temperature=1, or take another server"
            )
        if found.logprobs is not None and mass >= config.min_option_mass:
            return ""
        return low_mass(config, mass, f"{found.problem}; " if found.problem else "", f"its first token is {seen(kept)}")

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
                if text in (TOO_LONG, REFUSED, FAILED):
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
            sampling.max_new_tokens,
            sampling.temperature,
            top_p=sampling.top_p,
            seed=stable_seed(self.run.config.seed, "reasoning", question.key, attempt) % 2**31,
        )

    def _after(self, asked: list[ChatMessage], thoughts: str) -> list[ChatMessage]:
        """The conversation with the reasoning, and the request for the option."""
        reasoning = self.config.reasoning
        assert reasoning is not None
        said = reasoned(reasoning.opening, thoughts, "")
        return [*asked, {"role": "assistant", "content": said}, {"role": "user", "content": reasoning.closing}]

    def _body(self, asked: list[ChatMessage], new: int, temperature: float, **settings: Any) -> Body:
        server = self.server
        made = {
            "model": server.model,
            "messages": asked,
            server.max_tokens_field: new,
            "temperature": max(temperature, server.min_temperature),
            **settings,
            **server.extra_body,
        }
        return {key: value for key, value in made.items() if value is not None}

    def _send(self, phase: str, bodies: Sequence[Body], check: Callable[[Any], Any]) -> list[Any]:
        with (
            AnswerStore(answers_file(self.run)) as store,
            self.run.console.task(phase, total=len(bodies), unit="questions") as task,
        ):
            return Endpoint(self.server, store, check).ask(bodies, self.run.check_stop, task.advance)


def messages(turns: Sequence[Turn]) -> list[ChatMessage]:
    """The turns of a question as the API names them."""
    names = {"system": "system", "assistant": "assistant"}
    return [{"role": names.get(t.role, "user"), "content": t.text} for t in turns]
