"""Reward terms of one's own: every answer that does not fit is one line that names the term."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cai_dist.cluster.ppo.reward_terms import CombinedScores, RewardTerms, joined, reward_terms_spec
from cai_dist.config.checks.run import check_run
from cai_dist.config.demand import ppo_demand
from cai_dist.config.loading.load import build_run
from cai_dist.config.rewards import RewardTerm, reward_problems
from cai_dist.errors import CaiError, ConfigError
from cai_dist.experience.reward_terms import OwnTerm, TermScores
from cai_dist.registry import find_object
from cai_dist.stages import ppo as stage
from cai_dist.types import Prompt, Turn

SOURCE = """
import asyncio, time

def length(prompts, responses, response_ids, per_token=1.0):
    return [-per_token * len(ids) for ids in response_ids]

async def later(prompts, responses, response_ids):
    await asyncio.sleep(0.001)
    return [float(len(text)) for text in responses]

def kinds(prompts, responses, response_ids):
    return [p.kind == "helpful" and p.turns[-1].text == "hello" for p in prompts]

class Counter:
    def __init__(self, start):
        self.calls = start
    def __call__(self, prompts, responses, response_ids):
        self.calls += 1
        return [self.calls] * len(responses)

def few(prompts, responses, response_ids): return [1.0]
def infinite(prompts, responses, response_ids): return [1.0, float("inf")]
def words(prompts, responses, response_ids): return ["a", "b"]
def fails(prompts, responses, response_ids): raise KeyError("no such thing")
def hangs(prompts, responses, response_ids): time.sleep(20)
def hangs_midway(prompts, responses, response_ids):
    yield 1.0
    time.sleep(20)
def two(prompts, responses): return []
"""
PROMPTS = [Prompt("p1", (Turn("human", "hello"),), "helpful"), Prompt("p2", (Turn("human", "hello"),), "red_team")]
TEXTS, IDS = ["one", "three"], [(1, 2), (1, 2, 3)]


@pytest.fixture(autouse=True)
def terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_terms.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    find_object.cache_clear()
    yield
    sys.modules.pop("my_terms", None)


def said(use: str, **more: Any) -> TermScores:
    return OwnTerm(RewardTerm(use=f"my_terms:{use}", **more)).scores(PROMPTS, TEXTS, IDS)


def test_functions_coroutines_and_classes() -> None:
    assert said("length").numbers == (-2.0, -3.0)
    assert said("length", args={"per_token": 0.5}).numbers == (-1.0, -1.5)
    assert said("later").numbers == (3.0, 5.0) and said("later").seconds > 0
    assert said("kinds").numbers == (1.0, 0.0)
    counter = OwnTerm(RewardTerm(use="my_terms:Counter", args={"start": 4}))
    assert [counter.scores(PROMPTS, TEXTS, IDS).numbers for _ in range(2)] == [(5.0, 5.0), (6.0, 6.0)]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ("few", "gave 1 numbers for 2 responses"),
        ("infinite", "gave inf for a response to prompt p2; every number must be finite"),
        ("words", "must give one number a response: ValueError"),
        ("fails", "KeyError: 'no such thing'"),
        ("hangs", "no answer within timeout=0.1 s"),
        ("hangs_midway", "no answer within timeout=0.1 s"),
    ],
)
def test_an_answer_that_does_not_fit_names_the_term(use: str, message: str) -> None:
    with pytest.raises(CaiError) as caught:
        said(use, timeout=0.1 if "hangs" in use else 60.0)
    assert str(caught.value).startswith(f"reward term {use} (my_terms:{use}): {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("use", "args", "message"),
    [
        ("none", {}, "ppo.rewards=my_terms:none: the module my_terms has no none"),
        ("two", {}, r"ppo.rewards=my_terms:two: must be callable with \(prompts, responses, response_ids\)"),
        ("length", {"per_word": 1}, "ppo.rewards=my_terms:length: must be callable"),
        ("Counter", {}, "ppo.rewards=my_terms:Counter: cannot be made with args={}: TypeError"),
    ],
)
def test_a_term_that_cannot_be_made_is_refused(use: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OwnTerm(RewardTerm(use=f"my_terms:{use}", args=args))


class Ready:
    """What a group has answered."""

    def __init__(self, found: Any) -> None:
        self.found = found

    def result(self, meanwhile: Any = None) -> Any:
        return self.found


def test_the_score_is_the_weighted_sum_in_the_order_of_the_samples() -> None:
    config = build_run(
        {"name": "x", "ppo": {"rewards": [
            {"use": "preference_model", "weight": 2.0},
            {"use": "my_terms:length", "weight": 0.5},
        ]}}
    ).ppo  # fmt: skip
    own = Ready([[TermScores("length", (1.0, 2.0), 0.5)], [TermScores("length", (4.0,), 0.25)]])
    terms = RewardTerms(config.rewards, None)
    scores = CombinedScores(config.rewards, Ready([10.0, 20.0, 30.0]), own, terms._note)  # type: ignore[arg-type]
    assert scores.result() == [20.5, 41.0, 62.0]
    assert terms.metrics() == {
        "reward_preference_model": 20.0,
        "reward_length": pytest.approx(7 / 3),
        "reward_length_seconds": 0.75,
    }
    assert terms.metrics() == {}
    assert joined([]) == {}


def test_without_the_key_nothing_is_different() -> None:
    plain = build_run({"name": "x"})
    same = build_run({"name": "x", "ppo": {"rewards": [{"use": "preference_model", "weight": 1.0}]}})
    assert "rewards" not in stage.settings(plain)["ppo"] and stage.settings(plain) == stage.settings(same)
    assert plain.ppo.plain_rewards and reward_terms_spec(plain.ppo, None, 1) == []
    half = build_run({"name": "x", "ppo": {"rewards": [{"use": "preference_model", "weight": 0.5}]}})
    assert not half.ppo.plain_rewards and stage.settings(half) != stage.settings(plain)


def test_a_term_decides_the_result_with_its_source_and_a_timeout_does_not(tmp_path: Path) -> None:
    def settings(**term: Any) -> dict[str, Any]:
        return stage.settings(build_run({"name": "x", "ppo": {"rewards": [{"use": "my_terms:length", **term}]}}))

    assert settings() == settings(timeout=5.0) != settings(weight=2.0)
    before = settings()
    assert list(before["strategies"]) == ["ppo.rewards.length"]
    (tmp_path / "my_terms.py").write_text(SOURCE + "\n", encoding="utf-8")
    assert settings() != before


def test_without_the_preference_model_as_a_term_it_is_not_started() -> None:
    ppo = build_run({"name": "x", "ppo": {"rewards": [{"use": "my_terms:length"}]}}).ppo
    assert ppo.roles == ("policy", "value", "reference", "rollout")
    own = build_run({"name": "x", "ppo": {"rewards": [{"use": "preference_model"}, {"use": "my_terms:length"}]}})
    plain = build_run({"name": "x"})
    assert math.isclose(ppo_demand(own).cpus - ppo_demand(plain).cpus, 0.25), "its workers have their CPUs"


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([], "ppo.rewards=\\[\\]: there is nothing to learn from"),
        ([{"use": "my_terms:few"}, {"use": "my_terms:few"}], "ppo.rewards: 2 terms are called few; give each a `name`"),
        ([{"args": {"a": 1}}], "ppo.rewards: preference_model: the preference model takes no args"),
        ([{"use": "my_terms:few", "timeout": 1000.0}], "timeout=1000: must be smaller than cluster.timeouts.call=900"),
    ],
)
def test_contradictions_are_one_line(rewards: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    config = build_run({"name": "x", "runs_dir": str(tmp_path), "ppo": {"rewards": rewards}})
    assert len(list(reward_problems(config.ppo.rewards, 900.0))) == 1
    with pytest.raises(ConfigError, match=message):
        check_run(config, ready=False)
