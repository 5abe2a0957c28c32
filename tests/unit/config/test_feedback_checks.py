"""Feedback settings that contradict each other are refused with one line each."""

from __future__ import annotations

import pytest

from cai_dist.config.checks.feedback import feedback_problems
from cai_dist.config.loading.load import build_run
from cai_dist.errors import ConfigError

ENDPOINT = {"url": "http://127.0.0.1:8000/v1", "model": "m"}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"models": {"assistant": "sl"}}, "models.assistant=sl"),
        ({"models": {"pretrained": "sl"}}, "models.pretrained=sl"),
        ({"feedback": {"per_pair": 3, "principles": 2}}, "feedback.per_pair=3: must be at most feedback.principles=2"),
        ({"feedback": {"form": "text", "reasoning": {}}}, "feedback.form=text"),
        ({"feedback": {"few_shot": 2, "reasoning": {}}}, "feedback.few_shot=2"),
        (
            {"feedback": {"reasoning": {"sampling": {"max_new_tokens": 256}}}},
            "feedback.reasoning.sampling.max_new_tokens=256: leaves no room",
        ),
        ({"feedback": {"endpoint": ENDPOINT, "prefill": "("}}, "feedback.prefill='('"),
        ({"feedback": {"endpoint": ENDPOINT, "form": "text"}}, "feedback.form=text"),
        ({"feedback": {"endpoint": ENDPOINT, "reasoning": {"closing": " "}}}, "feedback.reasoning.closing"),
        ({"feedback": {"endpoint": ENDPOINT, "option_labels": ["(1)", "[1]"]}}, "feedback.option_labels"),
        ({"feedback": {"endpoint": ENDPOINT, "option_labels": ["1", "10"]}}, "feedback.option_labels"),
        ({"feedback": {"endpoint": {**ENDPOINT, "url": "http://"}}}, "feedback.endpoint.url"),
    ],
)
def test_one_line_each(sections, words) -> None:
    try:
        [line] = feedback_problems(build_run({"name": "x", **sections}))
    except ConfigError as error:  # refused where it was read
        line = str(error)
    assert words in line and "\n" not in line


@pytest.mark.parametrize("url", ["http://me:hunter2@host/v1", "https://hunter2@host", "http://host/v1?key=hunter2"])
def test_a_password_in_the_address_is_refused_and_not_shown(url) -> None:
    [line] = feedback_problems(build_run({"name": "x", "feedback": {"endpoint": {**ENDPOINT, "url": url}}}))
    assert "feedback.endpoint.url" in line and "hunter2" not in line


@pytest.mark.parametrize(
    "feedback",
    [
        {},
        {"per_pair": 16},
        {"reasoning": {}, "endpoint": ENDPOINT},
        {"endpoint": {**ENDPOINT, "url": "https://api.example.org/openai/v1/"}},
        {"reasoning": {"sampling": {"max_new_tokens": 1000}}, "endpoint": ENDPOINT},
    ],
)
def test_what_is_allowed(feedback) -> None:
    assert list(feedback_problems(build_run({"name": "x", "feedback": feedback}))) == []


def test_no_world_where_a_server_or_sl_compares() -> None:
    real = {"assistant": "a/b", "pretrained": "a/b"}
    data = {kind: {"source": "x.jsonl"} for kind in ("red_team", "helpful")}
    assert build_run({"name": "x", "models": real, "data": data}).uses_world
    assert not build_run({"name": "x", "models": {**real, "feedback": "sl"}, "data": data}).uses_world
    served = build_run({"name": "x", "models": real, "data": data, "feedback": {"endpoint": ENDPOINT}})
    assert not served.uses_world and not served.feedback_is_sl
