"""Labels from a server: real requests to a server on this machine that fails, refuses, hangs and sends garbage."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_dist.chat_api.answer_store import AnswerStore
from cai_dist.chat_api.client import Endpoint
from cai_dist.chat_api.wire_messages import TOO_LONG
from cai_dist.config.feedback import EndpointConfig, FeedbackConfig, ReasoningConfig
from cai_dist.errors import ConfigError, EndpointError, Interrupted
from cai_dist.stages.ai_feedback import labelling
from cai_dist.stages.ai_feedback.server_model import answers_file, check_server
from cai_dist.stages.ai_feedback.server_reading import option_logprobs, read_positions, read_text
from cai_dist.types import Comparison, Prompt, Turn

from .chat_server import ChatServer, Said, text, tokens

KEY = "sk-very-secret-1234567890"
AB = ("(A)", "(B)")
BODIES = [{"model": "m", "messages": [{"role": "user", "content": str(i)}]} for i in range(6)]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    def __call__(self) -> float:
        return self.now


def ask(
    path: Path, server: ChatServer, bodies: list[dict[str, Any]] = BODIES,
    check_stop: Callable[[], None] = lambda: None, clock: Clock | None = None, **config: Any,
) -> list[Any]:  # fmt: skip
    clock = clock or Clock()
    made = EndpointConfig(url=server.url, model="m", **{"concurrency": 1, "timeout": 20.0, **config})
    with AnswerStore(path / "answers.jsonl") as store:
        return Endpoint(made, store, read_text, sleep=clock.sleep, clock=clock).ask(bodies, check_stop)


def echo(body: dict[str, Any], n: int) -> Said:
    return text("re " + body["messages"][0]["content"])


ECHOED = [{"text": f"re {i}"} for i in range(6)]


def test_answers_come_in_order_and_equal_questions_are_asked_once(tmp_path) -> None:
    with ChatServer(echo) as server:
        assert ask(tmp_path, server, BODIES * 2, concurrency=3) == ECHOED * 2
        assert len(server.bodies) == 6
        assert server.most_at_once <= 3


def test_nothing_is_asked_twice(tmp_path) -> None:
    up = [False]
    with ChatServer(lambda body, n: echo(body, n) if n < 4 or up[0] else Said({"error": "down"}, 500)) as server:
        with pytest.raises(EndpointError, match="says 500 down, after 1 tries"):
            ask(tmp_path, server, retries=0)
        up[0] = True
        assert ask(tmp_path, server) == ECHOED
        assert [b["messages"][0]["content"] for b in server.bodies] == ["0", "1", "2", "3", "4", "5", "4", "5"]


def test_what_is_stored_survives_a_death_in_the_middle_of_a_line(tmp_path) -> None:
    with ChatServer(echo) as server:
        ask(tmp_path, server)
        path = tmp_path / "answers.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:3]) + b"{broken}\n" + lines[3] + lines[4][:-10])
        assert ask(tmp_path, server) == ECHOED
        assert [b["messages"][0]["content"] for b in server.bodies[6:]] == ["4", "5"]
        assert ask(tmp_path, server) == ECHOED
        assert len(server.bodies) == 8


def test_waits_double_and_are_jittered(tmp_path) -> None:
    clock = Clock()
    with ChatServer(lambda body, n: echo(body, n) if n == 8 else Said(b"<html>busy</html>", 503)) as server:
        assert ask(tmp_path, server, BODIES[:1], clock=clock, retries=8) == ECHOED[:1]
    assert len(clock.slept) == 8
    for attempt, wait in enumerate(clock.slept):
        whole = min(60.0, 2.0**attempt)
        assert whole / 2 <= wait <= whole
    assert len({round(w / min(60.0, 2.0**a), 6) for a, w in enumerate(clock.slept)}) > 1


@pytest.mark.parametrize(("asked", "least", "most"), [("7", 7, 8), ("0", 0, 1), ("1e9", 300, 301), ("-5", 0, 1)])
def test_the_server_says_when_to_come_back(tmp_path, asked, least, most) -> None:
    clock = Clock()
    busy = Said({"error": {"message": "slow down"}}, 429, {"Retry-After": asked})
    with ChatServer(lambda body, n: echo(body, n) if n else busy) as server:
        assert ask(tmp_path, server, BODIES[:1], clock=clock) == ECHOED[:1]
    assert least <= clock.now <= most


@pytest.mark.parametrize("asked", ["soon", "nan", "Wed, 99 Foo 2020", "", "inf"])
def test_a_wait_that_makes_no_sense_is_bounded(tmp_path, asked) -> None:
    clock = Clock()
    busy = Said({}, 429, {"Retry-After": asked})
    with ChatServer(lambda body, n: echo(body, n) if n else busy) as server:
        assert ask(tmp_path, server, BODIES[:1], clock=clock) == ECHOED[:1]
    assert 0.5 <= clock.now <= 301


def test_the_own_rate_limit(tmp_path) -> None:
    clock = Clock()
    with ChatServer(echo) as server:
        assert ask(tmp_path, server, clock=clock, requests_per_minute=30, concurrency=4) == ECHOED
    assert clock.now == pytest.approx(10.0)  # six requests, two seconds between them


@pytest.mark.parametrize("broken", [Said(hang=True), Said(trickle=True)])
def test_a_server_that_hangs_or_trickles_meets_the_deadline(tmp_path, broken) -> None:
    with (
        ChatServer(lambda body, n: broken) as server,
        pytest.raises(EndpointError, match="no answer within 0.3 s .*, after 2 tries"),
    ):
        ask(tmp_path, server, BODIES[:1], timeout=0.3, retries=1)


GARBAGE = [
    b"", b"\xff\xfe", b"null", b"[]", b"{", b'"text"', b"[" * 100_000, {}, {"choices": []}, {"choices": [None]},
    {"choices": [{"message": {"content": 7}}]}, {"choices": {"0": 1}},
]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE, ids=[repr(g)[:20] for g in GARBAGE])
def test_garbage_is_asked_for_again_then_one_line(tmp_path, garbage) -> None:
    with ChatServer(lambda body, n: Said(garbage) if n == 0 else echo(body, n)) as server:
        assert ask(tmp_path, server, BODIES[:1]) == ECHOED[:1]
    with ChatServer(lambda body, n: Said(garbage)) as server:
        with pytest.raises(EndpointError, match="makes no sense") as caught:
            ask(tmp_path / "b", server, BODIES[:1], retries=1)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_server_that_is_not_there(tmp_path) -> None:
    with ChatServer(echo) as server:
        pass
    with pytest.raises(EndpointError, match="cannot be reached"):
        ask(tmp_path, server, BODIES[:1], retries=1)


@pytest.mark.parametrize(
    ("status", "said", "match"),
    [
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, "the environment variable OPENAI_API_KEY"),
        (403, {"error": "no"}, "set the environment variable OPENAI_API_KEY"),
        (404, {"error": {"message": "The model does not exist"}}, "no model 'm' there: The model does not exist"),
        (302, b"", "a redirect, which is not followed"),
        (418, b"\x00\x1b[31mteapot" * 100, "says 418"),
    ],
)  # fmt: skip
def test_a_refusal_that_will_not_change_is_one_line(tmp_path, monkeypatch, status, said, match) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ChatServer(lambda body, n: Said(said, status)) as server:
        with pytest.raises(ConfigError, match=match) as caught:
            ask(tmp_path, server)
        assert len(server.bodies) == 1
        assert server.keys == [f"Bearer {KEY}"]
    line = str(caught.value)
    assert "\n" not in line and "\x1b" not in line and KEY not in line and len(line) < 600


def test_a_question_that_is_too_long_for_the_server_is_none_of_the_others_business(tmp_path) -> None:
    refusal = Said({"error": {"message": "This model's maximum context length is 10 tokens"}}, 400)
    with ChatServer(lambda body, n: refusal if body["messages"][0]["content"] == "1" else echo(body, n)) as server:
        assert ask(tmp_path, server) == [ECHOED[0], TOO_LONG, *ECHOED[2:]]
        ask(tmp_path, server)
        assert len(server.bodies) == 7  # it alone is asked again: the server may have been started anew


def test_the_key_is_in_the_header_and_nowhere_else(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OTHER_KEY", KEY + "\n")
    with ChatServer(echo) as server:
        ask(tmp_path, server, api_key_env="OTHER_KEY")
        assert set(server.keys) == {f"Bearer {KEY}"}
        assert KEY not in json.dumps(server.bodies)
        ask(tmp_path / "b", server)
        assert server.keys[-1] is None  # no key, no header
    assert KEY.encode() not in (tmp_path / "answers.jsonl").read_bytes()
    monkeypatch.setenv("OTHER_KEY", KEY + "\r\nX: é")
    with pytest.raises(ConfigError, match="OTHER_KEY") as caught:
        ask(tmp_path, server, api_key_env="OTHER_KEY")
    assert KEY not in str(caught.value)


def test_a_stop_keeps_what_is_under_way(tmp_path) -> None:
    both_asked, stopped = threading.Event(), threading.Event()

    def say(body: dict[str, Any], n: int) -> Said:
        if n == 1:  # the answer to the second request comes after the stop
            both_asked.set()
            stopped.wait(10)
        elif n == 0:
            both_asked.wait(10)
        return echo(body, n)

    def stop() -> None:
        if both_asked.is_set():
            stopped.set()
            raise Interrupted("stop")

    with ChatServer(say) as server:
        with pytest.raises(Interrupted):
            ask(tmp_path, server, check_stop=stop, concurrency=2)
        assert ask(tmp_path, server) == ECHOED
        assert len(server.bodies) == 6  # what had been asked was kept


def positions(*places: dict[str, float]) -> list[list[tuple[str, float]]]:
    return read_positions(tokens(*places).content)


LOG = math.log


@pytest.mark.parametrize(
    ("places", "a", "b"),
    [
        ([{"A": LOG(0.75), "B": LOG(0.25)}], 0.75, 0.25),
        ([{" B": LOG(0.6), " A": LOG(0.2), "(A": LOG(0.1), "I": LOG(0.1)}], 0.3, 0.6),  # spellings add up
        ([{"(": LOG(0.8), "A": LOG(0.2)}, {"A": LOG(0.5), "B": LOG(0.5)}], 0.2 + 0.4, 0.4),
        ([{"The": LOG(0.5)}, {" answer": 0.0}, {" is": 0.0}, {": (": 0.0}, {"B": LOG(0.5), "A": LOG(0.2)}], 0.1, 0.25),
        ([{"**": 0.0}, {"(": 0.0}, {"A)": LOG(0.9), "B)": LOG(0.1)}], 0.9, 0.1),
        ([{"A": LOG(0.75), "B": LOG(0.25)}, {")": 0.0}], 0.75, 0.25),  # what comes after the label counts no more
        ([{"A": 0.0, "I": -30.0}], 1.0, 0.0),  # one that is not among the alternatives is impossible
        ([{"A": LOG(0.75), "B": LOG(0.25)}, {" is": 0.0}, {" better": 0.0}], 0.75, 0.25),
        ([{"B": LOG(0.75), "A": LOG(0.25)}, {" good": 0.0}], 0.25, 0.75),  # no word is spelled so
    ],
)  # fmt: skip
def test_options_are_found_however_they_are_spelled(places, a, b) -> None:
    found = option_logprobs(positions(*places), AB)
    assert [math.exp(x) for x in found] == pytest.approx([a, b])


@pytest.mark.parametrize(
    "places",
    [
        [],
        [{"Sorry": 0.0}],
        [{"As": 0.0}, {" A": 0.0}],  # "As A …" names no option
        [{"Answer": 0.0}],
        [{"Both": 0.0}, {"B": 0.0}],
        [{"a": 0.0}, {" good": 0.0}],
        [{"A": LOG(0.9), "B": LOG(0.1)}, {" good": 0.0}, {" answer": 0.0}],  # an article
        [{"A": LOG(0.9), "B": LOG(0.1)}, {" and": 0.0}, {" B": 0.0}],
        [{"The": 0.0}, {" answer": 0.0}, {" is": 0.0}, {" A": LOG(0.9), " B": LOG(0.1)}, {" matter": 0.0}],
        [{"A": 0.0}],  # no alternative, no soft label
        [{"(": -0.1, "I": -3.0}, {"A": 0.0, "B": -9999.0, "C": -9999.0}],  # what greedy sampling leaves
    ],
)
def test_an_answer_that_names_no_option(places) -> None:
    assert option_logprobs(positions(*places), AB) is None


@given(st.lists(st.dictionaries(st.text(max_size=6), st.floats(-50, 0), min_size=1, max_size=4), max_size=8))
@settings(max_examples=100)
def test_any_tokens_give_two_probabilities_or_none(places) -> None:
    found = option_logprobs([list(place.items()) for place in places], AB)
    assert found is None or (len(found) == 2 and max(found) > -math.inf and not any(map(math.isnan, found)))


@pytest.mark.parametrize(
    "content", [3, [3], [{}], [{"token": 1, "logprob": 0}], [{"token": "A", "logprob": "x"}],
                [{"token": "A", "logprob": math.nan}], [{"token": "A", "logprob": 0.0, "top_logprobs": 3}],
                [{"token": "A", "logprob": None}], [{"token": "A", "logprob": 0.9}], [{"token": "A", "logprob": 17}],
                [{"token": "A", "logprob": 0, "top_logprobs": [{"token": "B", "logprob": 0}]}]],
)  # fmt: skip
def test_logprobs_that_make_no_sense(content) -> None:
    with pytest.raises(ValueError):
        read_positions({"choices": [{"logprobs": {"content": content}}]})


def test_a_server_without_logprobs_is_refused_at_once(make_run) -> None:
    with ChatServer(lambda body, n: text("(A)")) as server:
        run = make_run(feedback=FeedbackConfig(endpoint=EndpointConfig(url=server.url, model="m")))
        with pytest.raises(ConfigError, match="gives no log-probabilities"):
            check_server(run)
        assert len(server.bodies) == 1


PAIR = Comparison(
    Prompt("p", (Turn("human", "make cake salt ?"),), "red_team"), "take mix .", "no no .", 0.5, "ai", "danger-1"
)


def prefers_take(body: dict[str, Any], n: int) -> Said:
    """Prefers the first place by 1 nat and the answer with "take" by 2."""
    question = next(m for m in body["messages"] if "options :" in m["content"])["content"]
    first = question.index("take") < question.index("no no")
    a, b = 1.0 + 2.0 * first, 2.0 * (not first)
    whole = math.log(math.exp(a) + math.exp(b))
    return tokens({"(": 0.0}, {"A": a - whole, "B": b - whole})


def test_labels_from_a_server_need_no_workers_and_no_second_request(make_run) -> None:
    with ChatServer(prefers_take) as server:
        run = make_run(feedback=FeedbackConfig(temperature=2.0, endpoint=EndpointConfig(url=server.url, model="m")))
        folder = run.folder("feedback")
        [label] = labelling.label_pairs(run, None, folder, "labels", [PAIR], [["danger-1"]])
        sigma = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
        assert label.first[0] == pytest.approx(sigma(3 / 2))
        assert label.second[0] == pytest.approx(1 - sigma(-1 / 2))  # B is "take": (1 - 2) / 2
        assert label.p == pytest.approx((label.first[0] + label.second[0]) / 2)
        assert len(server.bodies) == 2
        assert {b["top_logprobs"] for b in server.bodies} == {20} and all(b["logprobs"] for b in server.bodies)
        # another temperature, the same questions: nothing is asked
        again = make_run(feedback=FeedbackConfig(endpoint=EndpointConfig(url=server.url, model="m")))
        [other] = labelling.label_pairs(again, None, folder, "labels-2", [PAIR], [["danger-1"]])
        assert other.first[0] == pytest.approx(sigma(3))
        assert len(server.bodies) == 2
        assert answers_file(run).is_file()


def test_reasoning_from_a_server(make_run) -> None:
    def say(body: dict[str, Any], n: int) -> Said:
        if "logprobs" in body:
            return prefers_take(body, n)
        return text("") if n == 0 else text("Think: (B) mocks. So: (A)")

    reasoning = ReasoningConfig(opening="Think:", closing="So:")
    with ChatServer(say) as server:
        endpoint = EndpointConfig(url=server.url, model="m", concurrency=1)
        run = make_run(feedback=FeedbackConfig(orders="one", reasoning=reasoning, endpoint=endpoint))
        [label] = labelling.label_pairs(run, None, run.folder("feedback"), "labels", [PAIR], [["danger-1"]])
        assert label.p == 0.6
        thought, again, chosen = server.bodies
        assert thought["messages"] == again["messages"] and thought["seed"] != again["seed"]
        assert thought["messages"][0]["content"].endswith("\n\nThink:")
        assert [m["role"] for m in chosen["messages"]] == ["user", "assistant", "user"]
        assert [m["content"] for m in chosen["messages"][1:]] == ["Think: (B) mocks.", "So:"]


def test_answers_without_an_option_are_counted(make_run) -> None:
    with ChatServer(lambda body, n: tokens({"Sorry": -0.1, "I": -3.0})) as server:
        run = make_run(feedback=FeedbackConfig(endpoint=EndpointConfig(url=server.url, model="m")))
        assert labelling.label_pairs(run, None, run.folder("f"), "x", [PAIR], [["danger-1"]]) == [None]
    lines = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [x["no_label"] for x in lines if x["stage"] == "f_x"] == [2]
