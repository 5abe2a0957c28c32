"""What servers do differently: lone failures, names of fields and headers, temperatures, forms of log-probabilities."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cai_dist.chat_api.client import FAILED, REFUSED
from cai_dist.config.feedback import EndpointConfig, FeedbackConfig, ReasoningConfig
from cai_dist.config.loading.load import build_run
from cai_dist.errors import ConfigError, EndpointError
from cai_dist.stages.ai_feedback import labelling
from cai_dist.stages.ai_feedback.server_model import check_server
from cai_dist.stages.ai_feedback.server_reading import option_logprobs, read_positions

from .chat_server import ChatServer, Said, text, tokens
from .test_endpoint import BODIES, ECHOED, KEY, PAIR, _no_proxy, ask, echo, prefers_take
from .test_endpoint_refusals import FILTERED, served

__all__ = ["_no_proxy"]  # a fixture of the other file, for every test of this one
BROKEN = Said({"error": "internal"}, 500)
NULL = Said({"choices": [{"message": {"content": None}, "logprobs": None}], "x": None})
MANY = [{"model": "m", "messages": [{"role": "user", "content": str(i)}]} for i in range(60)]


def number(body: dict[str, Any]) -> int:
    return int(body["messages"][0]["content"])


@pytest.mark.parametrize("broken", [BROKEN, Said({"choices": None}), Said(b"<html>", 502), Said(b"{}" * 9)])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_one_question_that_always_fails_is_counted_and_none_of_the_others_business(
    tmp_path: Path, broken: Said, concurrency: int
) -> None:
    with ChatServer(lambda body, n: broken if number(body) == 3 else echo(body, n)) as server:
        expected = [*ECHOED[:3], FAILED, *ECHOED[4:]]
        assert ask(tmp_path, server, retries=1, concurrency=concurrency) == expected
        assert len(server.bodies) == 7
        assert ask(tmp_path, server, retries=0) == expected and len(server.bodies) == 8  # it alone is asked again


def test_the_share_of_failures_is_bounded(tmp_path: Path) -> None:
    def say(body: dict[str, Any], n: int) -> Said:
        return BROKEN if number(body) % 20 == 19 else echo(body, n)

    with ChatServer(say) as server:
        # three of 60: more than 1% (and than one), no more than 5%; a share of 0 allows none
        for share, tries in ((0.01, 2), (0.0, 1)):
            with pytest.raises(EndpointError, match=r"says 500 internal, after 1 tries; .*same command") as caught:
                ask(tmp_path / str(share), server, MANY, retries=0, max_failed=share)
            assert "\n" not in str(caught.value)
            assert sum(number(b) % 20 == 19 for b in server.bodies) == tries
            server.bodies.clear()
        assert ask(tmp_path / "c", server, MANY, retries=0, max_failed=0.05).count(FAILED) == 3


def test_a_server_that_has_gone_ends_the_run_whatever_the_share(tmp_path: Path) -> None:
    with ChatServer(lambda body, n: echo(body, n) if n < 6 else BROKEN) as server:
        with pytest.raises(EndpointError, match="says 500"):
            ask(tmp_path, server, MANY, retries=0, max_failed=0.9, concurrency=2)
        assert len(server.bodies) <= 6 + 4  # two under way, one more, and what was sent beside it
    with ChatServer(lambda body, n: BROKEN) as server:
        with pytest.raises(EndpointError, match="says 500"):
            ask(tmp_path / "b", server, MANY, retries=0, max_failed=0.9)
        assert len(server.bodies) == 1  # nothing was ever answered


def test_refusals_without_end_are_not_the_questions(tmp_path: Path) -> None:
    with ChatServer(lambda body, n: echo(body, n) if n < 2 else FILTERED) as server:
        with pytest.raises(ConfigError, match="The response was filtered"):
            ask(tmp_path, server, MANY)
        assert len(server.bodies) == 2 + 51
    with ChatServer(echo) as server:
        assert REFUSED not in ask(tmp_path, server, MANY)  # and they were not kept


def test_a_question_without_probabilities_costs_its_own_pair(make_run) -> None:
    def say(body: dict[str, Any], n: int) -> Said:
        return NULL if "mix then stir" in json.dumps(body) else prefers_take(body, n)

    other = PAIR.__class__(PAIR.prompt, "take mix then stir .", "no no .", 0.5, "ai", "danger-1")
    with ChatServer(say) as server:
        endpoint = EndpointConfig(url=server.url, model="m", concurrency=1, retries=0, max_failed=0.5)
        run = make_run(feedback=FeedbackConfig(endpoint=endpoint, orders="one"))
        asked = [PAIR, other]
        found = labelling.label_pairs(run, None, run.folder("f"), "x", asked, [["danger-1"]] * 2)
        assert found[0] is not None and found[1] is None
    lines = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(x["failed"], x["refused"], x["no_label"]) for x in lines if x["stage"] == "f_x"] == [(1, 0, 0)]


def sent(make_run: Any, reasoning: ReasoningConfig | None = None, **settings: Any) -> ChatServer:
    """The server after the first question under these settings of the endpoint."""

    def say(body: dict[str, Any], n: int) -> Said:
        return tokens({"A": -0.1, "B": -2.5}) if "logprobs" in body else text("Paris is right.")

    with ChatServer(say) as server:
        config = EndpointConfig(url=server.url, model="m", retries=0, **settings)
        check_server(make_run(feedback=FeedbackConfig(endpoint=config, reasoning=reasoning)))
    return server


def test_fields_of_a_request_are_settings(make_run) -> None:
    [plain] = sent(make_run).bodies
    assert (plain["max_tokens"], plain["temperature"]) == (8, 0) and "seed" not in plain
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "top_p": None, "seed": None}
    made = sent(
        make_run, ReasoningConfig(), max_tokens_field="max_completion_tokens", min_temperature=0.5, extra_body=extra
    )
    thought, chosen = made.bodies
    for body, new, temperature in ((thought, 128, 1.0), (chosen, 8, 0.5)):
        assert body["max_completion_tokens"] == new and body["temperature"] == temperature
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        assert not {"max_tokens", "top_p", "seed"} & set(body)


def test_the_header_of_the_key_and_the_version_are_settings(make_run, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    made = sent(make_run, api_key_header="api-key", api_version="2024-10-21")
    assert made.paths == ["/v1/chat/completions?api-version=2024-10-21"]
    assert made.headers[0]["api-key"] == KEY and made.headers[0]["Authorization"] is None
    assert sent(make_run).headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("extra_body", {"stream": True}),
        ("extra_body", {"model": "other"}),
        ("extra_body", {"max_tokens": 1}),
        ("extra_body", {"x": {"api_key": "abc"}}),
        ("extra_body", {"x": ["Bearer abcdefg"]}),
        ("extra_body", {"x": math.nan}),
        ("api_key_header", KEY.replace("-", "")),
        ("api_key_header", "a\r\nb"),
        ("api_version", "sk0123456789012345678901234"),
        ("api_version", "x&y=1"),
    ],
)
def test_settings_that_cannot_be_are_refused_without_repeating_a_key(key: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        EndpointConfig(url="http://x/v1", model="m", **{key: value})
    endpoint = {"url": "http://x/v1", "model": "m", key: value}
    with pytest.raises(ConfigError, match=f"feedback.endpoint.{key}") as caught:
        build_run({"name": "x", "feedback": {"endpoint": endpoint}})
    assert not any(word in str(caught.value) for word in ("abc", "sk0123", KEY.replace("-", "")))


def test_packed_answers_are_unpacked_and_broken_ones_asked_for_again(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(ECHO0.content).encode())
    packed = {"Content-Encoding": "gzip"}
    with ChatServer(lambda body, n: Said(whole if n else whole[:-9] + b"x" * 9, 200, packed)) as server:
        assert ask(tmp_path, server, BODIES[:1], retries=1) == ECHOED[:1]
        assert len(server.bodies) == 2


ECHO0 = text("re 0")


def test_a_key_that_a_server_repeats_is_neither_kept_nor_shown(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ChatServer(lambda body, n: text(f"your key is {KEY}")) as server:
        assert ask(tmp_path, server, BODIES[:1]) == [{"text": "your key is ***"}]
    assert KEY.encode() not in (tmp_path / "answers.jsonl").read_bytes()
    page = Said(f"<html>{'x' * 150}{KEY}</html>".encode(), 200, {"Content-Type": "text/html"})
    with ChatServer(lambda body, n: page) as server, pytest.raises(EndpointError) as caught:
        ask(tmp_path / "b", server, BODIES[:1], retries=0)
    assert "sk-very" not in str(caught.value)


def test_the_older_form_of_log_probabilities_is_read() -> None:
    logprobs = {
        "tokens": ["(", "A"], "token_logprobs": [-0.1, math.log(0.75)],
        "top_logprobs": [{"(": -0.1, "I": -3.0}, {"A": math.log(0.75), "B": math.log(0.25)}],
    }  # fmt: skip
    found = option_logprobs(read_positions({"choices": [{"logprobs": logprobs}]}), ("(A)", "(B)"))
    assert [math.exp(x + 0.1) for x in found] == pytest.approx([0.75, 0.25])
    for key, value in (("token_logprobs", [0.0]), ("top_logprobs", [3, 3]), ("tokens", 3)):
        with pytest.raises(ValueError):
            read_positions({"choices": [{"logprobs": {**logprobs, key: value}}]})


def test_a_wrong_model_is_told_which_there_are(make_run) -> None:
    names = [{"id": f"org/model-{i}\x1b"} for i in range(7)]
    with ChatServer(lambda body, n: Said({"error": "no"}, 404), models=names) as server:
        with pytest.raises(ConfigError, match=r"it has 'org/model-0\\\\x1b', .* and 2 more") as caught:
            check_server(make_run(feedback=served(server)))
        assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
