"""A server that refuses some questions, or all; what is asked before anything is sampled; the environment's proxies."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai_dist.chat_api.client import REFUSED
from cai_dist.chat_api.wire_messages import TOO_LONG
from cai_dist.config.feedback import EndpointConfig, FeedbackConfig, ReasoningConfig
from cai_dist.errors import ConfigError, DataError, EndpointError
from cai_dist.stages import feedback
from cai_dist.stages.ai_feedback import labelling
from cai_dist.stages.ai_feedback.server_model import answers_file, check_server

from .chat_server import ChatServer, Said, text, tokens
from .test_endpoint import BODIES, ECHOED, PAIR, Clock, _no_proxy, ask, echo, prefers_take

__all__ = ["_no_proxy"]  # a fixture of the other file, for every test of this one
FILTERED = Said({"error": {"message": "The response was filtered", "code": "content_filter"}}, 400)
EMPTIED = Said({"choices": [{"message": {"content": None}, "logprobs": None, "finish_reason": "content_filter"}]})


def served(server: ChatServer, **more: Any) -> FeedbackConfig:
    return FeedbackConfig(endpoint=EndpointConfig(url=server.url, model="m", concurrency=1, retries=1), **more)


@pytest.mark.parametrize(
    "refusal",
    [
        FILTERED,
        Said({"error": {"message": "cannot process this"}}, 422),
        Said({"error": {"message": "This request violates our usage policy"}}, 403),
        EMPTIED,
    ],
    ids=["400", "422", "403", "emptied"],
)
def test_a_refused_question_is_none_of_the_others_business(tmp_path: Path, refusal: Said) -> None:
    # The first one is refused: at that time nothing has been answered yet.
    with ChatServer(lambda body, n: refusal if body["messages"][0]["content"] in "04" else echo(body, n)) as server:
        expected = [REFUSED, *ECHOED[1:4], REFUSED, ECHOED[5]]
        assert ask(tmp_path, server) == expected
        assert ask(tmp_path, server) == expected and len(server.bodies) == 6  # kept, and not asked again


def test_only_a_server_that_never_answers_ends_the_run(tmp_path: Path) -> None:
    with ChatServer(lambda body, n: FILTERED) as server:
        for _ in range(2):  # a refusal by all is not kept: what is wrong may be set right
            with pytest.raises(ConfigError, match="says 400 .*: The response was filtered") as caught:
                ask(tmp_path, server)
            assert "\n" not in str(caught.value)
        assert len(server.bodies) == 12
    with ChatServer(lambda body, n: echo(body, n) if n < 5 else FILTERED) as server:
        ask(tmp_path / "b", server, BODIES[:5])
        assert ask(tmp_path / "b", server, BODIES[5:]) == [REFUSED]  # alone, long after the others were answered


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"message": "the request exceeds the available context size, try increasing it"}),
        (400, {"message": "Input is longer than the context window"}),
        (400, {"message": "This model's maximum context length is 10 tokens"}),
        (422, {"message": "Please reduce the prompt", "code": "context_length_exceeded"}),
        (413, {"message": "no"}),
    ],
)
def test_too_long_has_many_words_and_is_not_kept(tmp_path: Path, status: int, error: dict[str, str]) -> None:
    longer = [False]

    def say(body: dict[str, Any], n: int) -> Said:
        return (
            Said({"error": error}, status) if body["messages"][0]["content"] == "1" and not longer[0] else echo(body, n)
        )

    with ChatServer(say) as server:
        assert ask(tmp_path, server) == [ECHOED[0], TOO_LONG, *ECHOED[2:]]
        longer[0] = True  # the server is started anew with a longer context
        assert ask(tmp_path, server) == ECHOED and len(server.bodies) == 7


def test_refused_questions_are_counted_and_named_where_no_label_is_left(make_run, tmp_path: Path) -> None:
    good = [True]

    def say(body: dict[str, Any], n: int) -> Said:
        return tokens({"A": -0.1, "B": -2.0}) if good[0] else FILTERED

    with ChatServer(say) as server:
        run = make_run(feedback=served(server))
        labelling.label_pairs(run, None, run.folder("f"), "x", [PAIR], [["danger-1"]])
        good[0] = False
        assert labelling.label_pairs(run, None, run.folder("f"), "y", [PAIR], [["rude-1"]]) == [None]
        [line] = [x for x in map(json.loads, (run.run_dir / "metrics.jsonl").open()) if x["stage"] == "f_y"]
        assert line["refused"] == 2
        with pytest.raises(DataError, match=r"none of 1 comparisons has a label.*no_label: .*refused: ") as caught:
            feedback.label_all(run, None, run.folder("g"), [replace(PAIR, principle_id="rude-1")])
        assert "\n" not in str(caught.value)


def test_an_answer_that_is_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    huge = Said(b'{"choices": [{"message": {"content": "' + b"a" * (9 << 20) + b'"}}]}')
    with (
        ChatServer(lambda body, n: huge) as server,
        pytest.raises(EndpointError, match="larger than 8 MiB, after 1 tries"),
    ):
        ask(tmp_path, server, BODIES[:1], retries=0)
    with ChatServer(lambda body, n: echo(body, n) if n else huge) as server:
        assert ask(tmp_path / "b", server, BODIES[:1]) == ECHOED[:1]


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (FILTERED, "says 400"),
        (Said({"error": {"message": "maximum context length is 10"}}, 400), "does not fit"),
        (text("(A)"), "gives no log-probabilities"),
    ],
)
def test_the_first_question_must_be_answered(make_run, said: Said, match: str) -> None:
    with ChatServer(lambda body, n: said) as server:
        with pytest.raises(ConfigError, match=match) as caught:
            check_server(make_run(feedback=served(server)))
        assert "\n" not in str(caught.value) and len(server.bodies) == 1


THINKS = tokens({"<think>": -1e-7, "A": math.log(3e-7), "B": math.log(1e-7)})
CANNOT = tokens({"I": -0.01, "A": math.log(1e-5), "B": math.log(4e-6)}, {" can't": 0.0})


@pytest.mark.parametrize("reasoning", [None, ReasoningConfig(opening="", closing="So:")])
@pytest.mark.parametrize(
    ("said", "seen"),
    [
        (THINKS, r"hold 4e-07 of .*'<think>' 1, 'A' 3e-07, 'B' 1e-07; .*enable_thinking: false"),
        (CANNOT, r"hold 1.4e-05 of .*min_option_mass=0.1; its first token is 'I' 0.99, 'A' 1e-05"),
        (tokens({"Sorry": -0.1, "I": -3.0}), r"the answer 'Sorry' names no option; .*'Sorry' 0.9, 'I' 0.05"),
        (tokens({"A": -0.2, "B": -2.0}, {" good": 0.0}), "the answer 'A good' names no option"),
        (tokens({"A": 0.0}), r"no alternative to the token 'A' \(20 asked for"),
        (tokens({"A": 0.0, "B": -9999.0}), "'A' all of the probability and -9999 to the others.*min_temperature=1"),
        (tokens({"\x1b[31m\n": -0.1, "I": -3.0}), r"'\\x1b\[31m' 0.9"),
    ],
)
def test_a_model_that_names_no_option_is_refused_at_the_first_questions(make_run, said, seen, reasoning) -> None:
    with ChatServer(lambda body, n: said if "logprobs" in body else text("Paris is right.")) as server:
        with pytest.raises(ConfigError, match=seen) as caught:
            check_server(make_run(feedback=served(server, reasoning=reasoning)))
        assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
        asked = [b["messages"] for b in server.bodies if "logprobs" in b]
        assert len(asked) == 2 and asked[0] != asked[1]  # both orders, before it counts
    with ChatServer(lambda body, n: said if n == 0 else tokens({"A": -0.1, "B": -2.5})) as server:
        check_server(make_run(feedback=served(server)))  # the other order has a label
    with ChatServer(lambda body, n: CANNOT) as server:
        check_server(make_run(feedback=served(server, min_option_mass=0.0)))  # as it is wished for


def test_the_first_question_is_asked_each_time_and_kept_nowhere(make_run) -> None:
    with ChatServer(lambda body, n: tokens({"A": -0.1, "B": -2.0})) as server:
        run = make_run(feedback=served(server))
        check_server(run)
        check_server(run)
        assert len(server.bodies) == 2 and answers_file(run).read_bytes() == b""


def test_a_server_that_cannot_do_what_reasoning_asks_is_refused_at_once(make_run) -> None:
    def say(body: dict[str, Any], n: int) -> Said:
        return Said({"error": {"message": "unknown parameter seed"}}, 400) if "seed" in body else prefers_take(body, n)

    with ChatServer(say) as server, pytest.raises(ConfigError, match="unknown parameter seed"):
        check_server(make_run(feedback=served(server, reasoning=ReasoningConfig())))


def test_nothing_is_sampled_where_the_server_does_not_answer(make_run, monkeypatch) -> None:
    monkeypatch.setattr(feedback, "training_prompts", lambda *_: pytest.fail("the check comes first"))
    with ChatServer(lambda body, n: Said({"error": "no"}, 404)) as server, pytest.raises(ConfigError, match="404"):
        feedback.execute(make_run(feedback=served(server)))


@pytest.mark.parametrize("proxy", ["http://me:hunter2@[::1", "nothing://x:1", "socks5://me:hunter2@127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used_is_one_line(tmp_path: Path, monkeypatch, proxy: str) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", proxy)

    class Elsewhere:
        url = "http://server.invalid/v1"

    with pytest.raises(ConfigError, match="feedback.endpoint: the proxy of the environment") as caught:
        ask(tmp_path, Elsewhere(), BODIES[:1], clock=Clock(), retries=0)  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)
    with ChatServer(echo) as server:  # on this machine: no proxy
        assert ask(tmp_path, server) == ECHOED


def test_a_form_of_request_that_the_server_does_not_support_is_one_line(tmp_path: Path) -> None:
    said = Said({"error": {"message": "logprobs is not\nsupported"}}, 400)
    with ChatServer(lambda body, n: said) as server:
        with pytest.raises(ConfigError, match="may not support them.: logprobs is not supported") as caught:
            ask(tmp_path, server, BODIES[:1])
        assert "\n" not in str(caught.value)
