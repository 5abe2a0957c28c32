"""A feedback model that names no option is refused at the first questions, with what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cai_dist.config.feedback import EndpointConfig, FeedbackConfig, ReasoningConfig
from cai_dist.config.run import ModelsConfig
from cai_dist.config.training import SamplingConfig
from cai_dist.data.chat import ChatFormat
from cai_dist.errors import ConfigError
from cai_dist.stages import feedback
from cai_dist.stages.ai_feedback import labelling, local_check, local_model, option_tokens
from cai_dist.stages.ai_feedback.questions import Unanswered, option_mass, with_mass
from cai_dist.types import Comparison, GenerateRequest, Generation, Prompt, Turn
from cai_dist.world.tokenizer import build_tokenizer

from .chat_server import ChatServer, tokens
from .conftest import FakeGroup

TOKENIZER = build_tokenizer()
NOISE = (math.log(3e-7), math.log(1e-7))
SURE = (math.log(0.6), math.log(0.3))
OWN = ModelsConfig(feedback="/own/model")


@pytest.fixture(autouse=True)
def _chat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The micro-world's chat format in place of any model's."""
    found = ChatFormat(TOKENIZER, "template")
    for module in (local_model, option_tokens, local_check):
        monkeypatch.setattr(module, "chat_format", lambda run, model: found)
    monkeypatch.setattr(labelling, "model_path", lambda run, role: "/own/model")


class Model:
    """Gives `options(prompt)` to the option labels and 0.9 to any other, and goes on with `words`."""

    def __init__(self, options: Callable[[str], tuple[float, float]], words: str = "stir mix then") -> None:
        self.options, self.words, self.asked = options, words, 0

    def __call__(self, method: str, request: Any) -> Any:
        self.asked += len(request.prompts)
        if isinstance(request, GenerateRequest):
            ids = tuple(TOKENIZER(self.words)["input_ids"])
            return [Generation(p, ids, (0.0,) * len(ids), "length", 0) for p in request.prompts]
        more = (math.log(0.9),) * (len(request.labels) - 2)
        return [(*self.options(TOKENIZER.decode(ids)), *more) for ids in request.prompts]


def pairs(n: int) -> list[Comparison]:
    turns = (Turn("human", "make cake salt ?"),)
    return [
        Comparison(Prompt(f"p{i}", turns, "red_team"), "take mix .", "no " * (i + 1) + ".", 0.5, "ai", "danger-1")
        for i in range(n)
    ]


@pytest.mark.parametrize("reasoning", [None, ReasoningConfig(opening="", closing="the answer is :")])
def test_a_model_that_names_no_option_is_refused_before_anything_is_sampled(make_run, tmp_path, reasoning) -> None:
    if reasoning is not None:
        reasoning = reasoning.model_copy(update={"sampling": SamplingConfig(max_new_tokens=16)})
    run = make_run(models=OWN, feedback=FeedbackConfig(reasoning=reasoning))
    assert local_check.needs_check(run)
    with pytest.raises(
        ConfigError, match="hold 4e-07 of the probability.*goes on with 'stir mix then'.*0.9."
    ) as caught:
        local_check.check_workers(run, FakeGroup(Model(lambda text: NOISE)), tmp_path / "a", "m")
    assert "\n" not in str(caught.value) and "enable_thinking" in str(caught.value)
    local_check.check_workers(run, FakeGroup(Model(lambda text: SURE)), tmp_path / "b", "m")


def test_one_order_that_has_a_label_is_enough(make_run, tmp_path) -> None:
    run, given = make_run(models=OWN), iter([NOISE, SURE])
    local_check.check_workers(run, FakeGroup(Model(lambda text: next(given))), tmp_path, "m")


def test_a_letter_before_a_word_is_no_option(make_run, tmp_path, monkeypatch) -> None:
    run = make_run(models=OWN, feedback=FeedbackConfig(prefill="", option_labels=("(A)", "(B)")))
    local_check.check_workers(run, FakeGroup(Model(lambda text: SURE, "(A) .")), tmp_path / "a", "m")
    monkeypatch.setattr(local_check, "core", lambda label: label)  # the micro-world has no bare letters
    monkeypatch.setattr(local_check, "names", lambda said, cores: 0)
    monkeypatch.setattr(local_check, "keeps", lambda said, cores: False)
    with pytest.raises(ConfigError, match="names no option, a word follows"):
        local_check.check_workers(run, FakeGroup(Model(lambda text: SURE, "(A) stir")), tmp_path / "b", "m")


@pytest.mark.parametrize(
    ("models", "config", "needed"),
    [
        (OWN, FeedbackConfig(), True),
        (ModelsConfig(), FeedbackConfig(), False),  # the micro-world's model knows none of the words
        (ModelsConfig(feedback="sl"), FeedbackConfig(), False),
        (ModelsConfig(pretrained="/p", feedback="sl"), FeedbackConfig(), True),
        (OWN, FeedbackConfig(min_option_mass=0.0), False),
        (
            OWN,
            FeedbackConfig(endpoint=EndpointConfig(url="http://x/v1", model="m")),
            False,
        ),  # is asked by `check_server`
    ],
)
def test_who_is_asked_the_made_up_question(make_run, models, config, needed) -> None:
    assert local_check.needs_check(make_run(models=models, feedback=config)) == needed


def test_a_model_that_refuses_the_real_questions_is_refused_at_the_first_of_them(make_run, tmp_path) -> None:
    # One of 32 has a label: nearly all have none.
    model = Model(lambda text: SURE if model.asked < 1 else NOISE)
    given = pairs(60)
    with pytest.raises(ConfigError, match=r"3\d of the first 32 questions have no label; .*'stir mix then'"):
        feedback.label_all(make_run(), FakeGroup(model), tmp_path / "a", given)
    assert model.asked == 32 + 2  # and one more to see what it says
    half = Model(lambda text: SURE if " no no no " in text else NOISE)
    found, _, mass = feedback.label_all(make_run(), FakeGroup(half), tmp_path / "b", given)
    assert len(found) == 58 and mass == pytest.approx((58 * 0.9 + 2 * 4e-7) / 60)


def test_a_server_that_refuses_the_real_questions_costs_32_of_them(make_run) -> None:
    cannot = tokens({"I": -0.01, "A": math.log(1e-5)}, {" can't": 0.0})
    with ChatServer(lambda body, n: cannot) as server:
        endpoint = EndpointConfig(url=server.url, model="m", concurrency=1)
        run = make_run(feedback=FeedbackConfig(endpoint=endpoint))
        with pytest.raises(ConfigError, match="32 of the first 32 questions have .*its first token is 'I' 0.99"):
            feedback.label_all(run, None, run.folder("f"), pairs(60))
        assert len(server.bodies) == 32


def test_what_a_mass_is() -> None:
    assert option_mass(SURE) == pytest.approx(0.9) and option_mass((-math.inf, 0.0)) == 1.0
    assert with_mass(SURE, 0.9 - 1e-12) == SURE
    assert with_mass(SURE, 0.91) is Unanswered.NO_LABEL
    assert with_mass(Unanswered.REFUSED, 0.5) is Unanswered.REFUSED
    for nothing in ((-math.inf, -math.inf), (math.nan, 0.0)):
        assert with_mass(nothing, 0.0) is Unanswered.NO_LABEL


def test_a_pair_without_a_label_reaches_no_table(make_run, tmp_path) -> None:
    bad = Model(lambda text: NOISE if "stir" in text else SURE)
    given = [replace(x, response_a="stir mix .") if i == 1 else x for i, x in enumerate(pairs(20))]
    found, principles, _ = feedback.label_all(make_run(), FakeGroup(bad), tmp_path, given)
    assert "p1" not in {x.comparison.prompt.id for x in found} and len(found) == 19
    assert sum(x["n"] for x in principles) == 19
