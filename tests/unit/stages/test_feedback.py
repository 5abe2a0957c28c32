"""Labels: what the feedback model says, in both orders and under each principle, and what the settings make of it."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import pytest

from cai_dist.config.feedback import FeedbackConfig, ReasoningConfig
from cai_dist.config.run import ModelsConfig
from cai_dist.config.training import SamplingConfig
from cai_dist.data.chat import ChatFormat
from cai_dist.errors import ConfigError, DataError
from cai_dist.stages import feedback
from cai_dist.stages.ai_feedback import labelling, local_check, local_model, option_tokens
from cai_dist.stages.ai_feedback.labelling import PairLabel
from cai_dist.stages.ai_feedback.questions import reasoned, usable_reasoning
from cai_dist.stages.ai_feedback.statistics import agree, entropy, principle_statistics
from cai_dist.stages.tables.records import Labelled
from cai_dist.types import Comparison, GenerateRequest, Generation, LabelRequest, Prompt, Turn
from cai_dist.world.tokenizer import build_tokenizer

from .conftest import FakeGroup

GOOD, BAD = "take mix then stir .", "no no no no no no no no no no no no ."


def prompt(number: int, split: str = "train") -> Prompt:
    return Prompt(f"p{number}", (Turn("human", "make cake salt ?"),), "red_team", split)  # type: ignore[arg-type]


def pair(number: int, a: str = GOOD, b: str = BAD, principle: str = "danger-1") -> Comparison:
    return Comparison(prompt(number), a, b, 0.5, "ai", principle)


def labelled(number: int, p: float, split: str = "train") -> Labelled:
    return Labelled(Comparison(prompt(number, split), "a", "b", p, "ai", "danger-1"), p, p, math.nan)


@pytest.fixture
def chat(make_run, monkeypatch) -> ChatFormat:
    """The micro-world's chat format in place of any model's."""
    found = ChatFormat(build_tokenizer(), "template")
    for module in (local_model, option_tokens, local_check):
        monkeypatch.setattr(module, "chat_format", lambda run, model: found)
    monkeypatch.setattr(labelling, "model_path", lambda run, role: "unused")
    return found


def test_first_option_normalises_over_the_two_labels() -> None:
    # e^-1 / (e^-1 + e^-2) = 1 / (1 + e^-1), however small both are
    assert labelling.first_option((-1.0, -2.0)) == pytest.approx(1 / (1 + math.exp(-1)))
    assert labelling.first_option((-1001.0, -1002.0)) == pytest.approx(1 / (1 + math.exp(-1)))
    assert labelling.first_option((-900.0, 0.0)) == pytest.approx(0.0)
    assert labelling.first_option((0.0, -900.0)) == pytest.approx(1.0)
    # one that a server does not name is impossible
    assert labelling.first_option((0.0, -math.inf)) == 1.0
    assert labelling.first_option((-math.inf, -3.0)) == pytest.approx(0.0)


def test_temperature_divides_the_difference() -> None:
    # log-odds 3 at temperature 2 are 1.5
    assert labelling.first_option((-1.0, -4.0), 2.0) == pytest.approx(1 / (1 + math.exp(-1.5)))
    assert labelling.first_option((-1.0, -4.0), 0.5) == pytest.approx(1 / (1 + math.exp(-6)))


def test_inverted_labels_are_one_minus_p() -> None:
    found = feedback.control([labelled(0, 0.9), labelled(1, 0.25)], "inverted", seed=0)
    assert [x.comparison.p_a for x in found] == pytest.approx([0.1, 0.75])
    assert [x.p_model for x in found] == [0.9, 0.25]


def test_controls_act_on_the_label_that_is_trained_on() -> None:
    hard = replace(labelled(0, 0.9), comparison=replace(labelled(0, 0.9).comparison, p_a=1.0))
    assert feedback.control([hard], "inverted", seed=0)[0].comparison.p_a == 0.0


def test_shuffled_labels_are_dealt_anew_within_each_split() -> None:
    given = [labelled(i, i / 40) for i in range(20)] + [labelled(i, 0.6 + i / 100, "heldout") for i in range(20, 40)]
    found = feedback.control(given, "shuffled", seed=3)
    for split in ("train", "heldout"):
        before = [x.p_model for x in given if x.comparison.prompt.split == split]
        after = [x.comparison.p_a for x in found if x.comparison.prompt.split == split]
        assert sorted(after) == sorted(before)
        assert after != before
    assert [x.comparison.prompt.id for x in found] == [x.comparison.prompt.id for x in given]


def biased(request: LabelRequest) -> list[tuple[float, float]]:
    """A feedback model that prefers the answer with "take" by 1 nat and the first place by 5 (pitfall 28)."""
    take = build_tokenizer().convert_tokens_to_ids("take")
    first_is_good = [ids.index(take) < len(ids) / 2 for ids in request.prompts]
    return [(5.0 + (1.0 if good else -1.0), 0.0) for good in first_is_good]


@pytest.mark.parametrize("orders", ["both", "one"])
def test_position_bias_cancels_in_both_orders(make_run, chat, tmp_path, orders) -> None:
    run = make_run(feedback=FeedbackConfig(orders=orders))
    group = FakeGroup(lambda method, request: biased(request))
    found = labelling.label_pairs(run, group, tmp_path, "x", [pair(0), pair(1, BAD, GOOD)], [["danger-1"]] * 2)
    good_first, bad_first = (x.p for x in found)
    if orders == "both":
        # swapping the options mirrors the probability, and the good answer wins from either place
        assert good_first == pytest.approx(1 - bad_first)
        assert good_first > 0.5
    else:
        assert bad_first > 0.9  # the bias alone decides
        assert found[0].second == ()


def by_principle(request: LabelRequest) -> list[tuple[float, float]]:
    """Sure of the good answer (by log 3) under "danger", unsure under "insult"."""

    def score(words: str) -> tuple[float, float]:
        if "insult" in words:
            return (0.0, 0.0)
        return (math.log(3), 0.0) if words.index("take") < words.index("no no") else (0.0, math.log(3))

    return [score(build_tokenizer().decode(ids)) for ids in request.prompts]


def test_an_ensemble_is_the_mean_over_its_principles(make_run, chat, tmp_path) -> None:
    run = make_run()
    group = FakeGroup(lambda method, request: by_principle(request))
    [found] = labelling.label_pairs(run, group, tmp_path, "x", [pair(0)], [["danger-1", "rude-1"]])
    assert found.first == pytest.approx((0.75, 0.5))
    assert found.second == pytest.approx((0.75, 0.5))
    assert found.p == pytest.approx(0.625)
    assert found.under(0) == pytest.approx(0.75)


def test_per_pair_draws_different_principles(make_run) -> None:
    run = make_run(feedback=FeedbackConfig(per_pair=16))
    everything = {p.id for p in run.constitution.comparison_principles}
    assert set(feedback._drawn(run, "p0", 0)) == everything
    run = make_run(feedback=FeedbackConfig(per_pair=3, principles=5))
    drawn = [feedback._drawn(run, f"p{i}", 0) for i in range(20)]
    assert all(len(set(d)) == 3 for d in drawn) and len({tuple(d) for d in drawn}) > 5
    assert set().union(*drawn) == {f"danger-{i}" for i in range(1, 6)}


@pytest.mark.parametrize(("p", "label"), [(0.5001, 1.0), (0.4999, 0.0), (0.5, 0.5)])
def test_hard_labels(p, label) -> None:
    assert feedback.harden(p) == label


def test_hard_labels_keep_the_models_probability(make_run, chat, tmp_path) -> None:
    run = make_run(feedback=FeedbackConfig(hard=True))
    group = FakeGroup(lambda method, request: by_principle(request))
    found, principles, _ = feedback.label_all(run, group, tmp_path, [pair(0), pair(1, principle="danger-1+rude-1")])
    assert [x.comparison.p_a for x in found] == [1.0, 1.0]
    assert [x.p_model for x in found] == pytest.approx([0.75, 0.625])
    n = {x["id"]: x["n"] for x in principles}
    assert (n["danger-1"], n["rude-1"], n["danger-2"]) == (2, 1, 0)


def test_a_pair_without_an_answer_is_left_out_and_counted(make_run, chat, tmp_path) -> None:
    run = make_run()
    group = FakeGroup(lambda method, request: [(1.0, 0.0)] * len(request.prompts))
    pairs = [pair(0), pair(1, GOOD, "no " * 250)]
    found = labelling.label_pairs(run, group, tmp_path / "s", "x", pairs, [["danger-1"]] * 2)
    assert found[0] is not None and found[1] is None
    [line] = [x for x in metrics(run) if x["stage"] == "s_x"]
    assert (line["questions"], line["too_long"], line["no_reasoning"]) == (4, 2, 0)
    with pytest.raises(DataError, match="none of 1 comparisons has a label"):
        feedback.label_all(run, group, tmp_path / "t", [pairs[1]])


# The first token of a reasoning model is "<think>" with probability 1; "I can't" leaves 2e-5 (sglang#25055).
NOISE = (math.log(3e-7), math.log(1e-7)), (math.log(1.2e-5), math.log(5e-6)), (math.nan, -1.0), (-math.inf, -math.inf)


@pytest.mark.parametrize("noise", NOISE)
def test_a_label_is_not_made_from_noise(make_run, chat, tmp_path, noise) -> None:
    run = make_run(feedback=FeedbackConfig(orders="one"))
    sure = (math.log(0.6), math.log(0.2))

    def score(method, request: LabelRequest):
        return [noise if "stir" in build_tokenizer().decode(ids) else sure for ids in request.prompts]

    group, pairs = FakeGroup(score), [pair(0), pair(1, "take mix .", BAD)]
    found = labelling.pair_answers(run, group, tmp_path / "s", "x", pairs, [["danger-1"]] * 2)
    assert found.labels[0] is None
    assert found.labels[1].p == pytest.approx(0.75) and found.labels[1].mass == pytest.approx((0.8,))
    [line] = [x for x in metrics(run) if x["stage"] == "s_x"]
    assert (line["questions"], line["no_label"], line["too_long"]) == (2, 1, 0)


def test_the_floor_is_a_setting_and_the_mean_mass_is_of_all_questions(make_run, chat, tmp_path) -> None:
    low, high = (math.log(0.03), math.log(0.01)), (math.log(0.5), math.log(0.4))
    group = FakeGroup(lambda method, request: [low, high] * (len(request.prompts) // 2))
    for least, whole in ((0.0, 2), (0.04 - 1e-9, 2), (0.05, 1)):
        config = FeedbackConfig(orders="one", min_option_mass=least)
        folder = tmp_path / str(least)
        run = make_run(feedback=config)
        found = labelling.pair_answers(run, group, folder, "x", [pair(0), pair(1, BAD, GOOD)], [["rude-1"]] * 2)
        assert sum(label is not None for label in found.labels) == whole
        assert found.option_mass == pytest.approx((0.04 + 0.9) / 2)  # what is below the floor is seen in it, too


def test_the_mass_stands_beside_the_agreement_of_the_orders(make_run, chat, tmp_path) -> None:
    run = make_run()
    group = FakeGroup(lambda method, request: [(math.log(0.6), math.log(0.3))] * len(request.prompts))
    found, principles, mass = feedback.label_all(run, group, tmp_path, [pair(0)])
    feedback._log(run, found, mass)
    [line] = [x for x in metrics(run) if x["stage"] == "feedback" and x["step"] == 2]
    assert line["option_mass"] == pytest.approx(0.9) and "order_agreement" in line
    assert [x["option_mass"] for x in principles if x["n"]] == [pytest.approx(0.9)]


def metrics(run) -> list[dict]:
    return [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]


REASONING = ReasoningConfig(opening="", closing="the answer is :", sampling=SamplingConfig(max_new_tokens=16))


class Thinker:
    """Thinks `thoughts[attempt]` about every question and answers (A) by 9 nats; notes what stood before the label."""

    def __init__(self, *thoughts: str) -> None:
        self.thoughts, self.asked, self.tokenizer, self.attempt = thoughts, [], build_tokenizer(), -1

    def __call__(self, method: str, request):
        if method == "score_labels":
            self.asked += [self.tokenizer.decode(ids) for ids in request.prompts]
            return [(0.0, -9.0)] * len(request.prompts)
        assert isinstance(request, GenerateRequest)
        self.attempt += 1
        ids = tuple(self.tokenizer(self.thoughts[self.attempt])["input_ids"])
        return [Generation(p, ids, (-1.0,) * len(ids), "stop", 0) for p in request.prompts]


@pytest.mark.parametrize(
    ("clamp", "orders", "p"),
    [
        ((0.4, 0.6), "one", 0.6),
        ((0.2, 0.8), "one", 0.8),
        (None, "one", 1 / (1 + math.exp(-9))),
        ((0.4, 0.6), "both", 0.5),
    ],
)
def test_reasoning_is_cut_closed_and_clamped(make_run, chat, tmp_path, clamp, orders, p) -> None:
    config = FeedbackConfig(orders=orders, reasoning=REASONING.model_copy(update={"clamp": clamp}))
    thinker = Thinker("it is safe . the answer is : (B) then stir")
    found = labelling.label_pairs(make_run(feedback=config), FakeGroup(thinker), tmp_path, "x", [pair(0)], [["rude-1"]])
    assert found[0].p == pytest.approx(p)  # in both orders it always says A: 1/2
    assert found[0].first[0] == pytest.approx(1 / (1 + math.exp(-9)))  # before the clamp
    # what the model itself answered is cut away; the closing stands there once more, before the label
    assert all(text.endswith("<assistant> it is safe . the answer is :") for text in thinker.asked)


def test_chains_of_thought_are_averaged_then_clamped(make_run, chat, tmp_path) -> None:
    """Three chains that end in (A), (A) and (B): p(A) is two thirds, cut off to 0.6."""
    thoughts = ["it is safe .", "it is safe .", "then press ."]

    def answer(method: str, request):
        if method == "score_labels":
            says = [build_tokenizer().decode(ids) for ids in request.prompts]
            return [(-50.0, 0.0) if thoughts[2] in text else (0.0, -50.0) for text in says]
        made = [tuple(build_tokenizer()(thoughts[i % 3])["input_ids"]) for i in range(len(request.prompts))]
        return [Generation(p, ids, (-1.0,) * len(ids), "stop", 0) for p, ids in zip(request.prompts, made, strict=True)]

    for clamp, p in ((None, 2 / 3), ((0.4, 0.6), 0.6)):
        reasoning = REASONING.model_copy(update={"chains": 3, "clamp": clamp})
        run = make_run(feedback=FeedbackConfig(orders="one", reasoning=reasoning))
        folder = tmp_path / str(p)
        [found] = labelling.label_pairs(run, FakeGroup(answer), folder, "x", [pair(0)], [["rude-1"]])
        assert found.p == pytest.approx(p) and found.first == pytest.approx((2 / 3,))
        [line] = [x for x in metrics(run) if x["stage"] == f"{folder.name}_x"]
        assert line["questions"] == 3


def test_a_chain_that_cannot_be_used_is_left_out_of_the_mean(make_run, chat, tmp_path) -> None:
    reasoning = REASONING.model_copy(update={"chains": 2, "clamp": None, "retries": 0})
    run = make_run(feedback=FeedbackConfig(orders="one", reasoning=reasoning))

    def answer(texts):
        def act(method: str, request):
            if method == "score_labels":
                return [(0.0, -50.0)] * len(request.prompts)
            made = [tuple(build_tokenizer()(texts[i])["input_ids"]) for i in range(len(request.prompts))]
            return [
                Generation(p, ids, (-1.0,) * len(ids), "stop", 0) for p, ids in zip(request.prompts, made, strict=True)
            ]

        return FakeGroup(act)

    args = ("x", [pair(0)], [["rude-1"]])
    [found] = labelling.label_pairs(run, answer(["it is safe .", "no " * 40]), tmp_path / "one", *args)
    assert found is not None and found.p == pytest.approx(1.0)
    assert labelling.label_pairs(run, answer(["no " * 40, "no " * 40]), tmp_path / "none", *args) == [None]
    counts = {x["stage"]: x["no_reasoning"] for x in metrics(run) if "no_reasoning" in x}
    assert (counts["one_x"], counts["none_x"]) == (1, 2)


def test_unusable_reasoning_is_sampled_again_then_left_out(make_run, chat, tmp_path) -> None:
    run = make_run(feedback=FeedbackConfig(orders="one", reasoning=REASONING))
    args = ("x", [pair(0)], [["rude-1"]])
    found = labelling.label_pairs(run, FakeGroup(Thinker("the answer is : (A)", "it is safe .")), tmp_path / "a", *args)
    assert found[0] is not None
    never = FakeGroup(Thinker("the answer is : (A)", "no " * 40))
    assert labelling.label_pairs(run, never, tmp_path / "b", *args) == [None]
    assert [x["no_reasoning"] for x in metrics(run) if x["stage"] == "b_x"] == [1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A helps. B harms.\nSo the  answer is: (B)", "A helps. B harms."),
        ("A helps. so the answer is (A), I think", "A helps."),
        ("So the answer is not plain. B harms.", "So the answer is not plain. B harms."),
        ("B harms. So the answer is (A) good thing.", "B harms. So the answer is (A) good thing."),
        ("Let's think step by step: B harms.", "B harms."),
        ("B harms.\n\nHuman: and now?", "B harms."),
        ("So the answer is: (A)", None),
        ("", None),
        ("yes " * 40, None),
    ],
)
def test_what_counts_as_reasoning(make_run, text, expected) -> None:
    config = FeedbackConfig(reasoning=ReasoningConfig())
    from cai_dist.constitution import Labels

    assert usable_reasoning(config, Labels(), text) == expected


@pytest.mark.parametrize("text", ["So the answer is" + " " * 300_000, "word " * 200_000, "\n" * 300_000 + "x"])
def test_long_reasoning_takes_no_longer_than_its_length(make_run, text) -> None:
    started = time.monotonic()
    usable_reasoning(FeedbackConfig(reasoning=ReasoningConfig()), make_run().constitution.templates.labels, text)
    colon = FeedbackConfig(reasoning=ReasoningConfig(closing=":"))
    usable_reasoning(colon, make_run().constitution.templates.labels, text)
    assert time.monotonic() - started < 20, "a pattern that goes back over white space takes minutes"


def test_the_answer_before_the_label() -> None:
    assert reasoned("Think:", "B harms.", "So:") == "Think: B harms.\n\nSo:"
    assert reasoned("", "B harms.", "") == "B harms."


def test_bare_text_is_the_papers_form() -> None:
    turns = (Turn("human", "Q1 The answer is:"), Turn("assistant", "(B)"), Turn("human", "Q2 The answer is:"))
    assert local_model.bare_text(turns) == "Q1 The answer is: (B)\n\nQ2 The answer is:"


def test_the_form_text_has_no_speakers(make_run, chat, tmp_path) -> None:
    asked = []

    def score(method, request: LabelRequest):
        asked.extend(build_tokenizer().decode(ids) for ids in request.prompts)
        return [(0.0, -1.0)] * len(request.prompts)

    run = make_run(feedback=FeedbackConfig(form="text", orders="one"))
    labelling.label_pairs(run, FakeGroup(score), tmp_path, "x", [pair(0)], [["danger-1"]])
    assert "<human>" not in asked[0] and asked[0].startswith("make ") and asked[0].endswith("the answer is :")


def test_labels_and_fixed_words_are_checked_before_anything_is_sampled(make_run, chat) -> None:
    option_tokens.check_tokens(make_run(feedback=FeedbackConfig(reasoning=REASONING)), "m")
    for config, key in (
        (FeedbackConfig(option_labels=("(Y)", "(N)")), "feedback.option_labels"),
        (FeedbackConfig(reasoning=ReasoningConfig(closing="the answer is :")), "feedback.reasoning.opening"),
        (FeedbackConfig(prefill="well"), "feedback.prefill"),
    ):
        with pytest.raises(ConfigError, match=key) as caught:
            option_tokens.check_tokens(make_run(feedback=config), "m")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "prefill", "labels"),
    [
        (FeedbackConfig(), "", ("(A)", "(B)")),
        (FeedbackConfig(option_labels=(" A", " B")), "", (" A", " B")),
        (FeedbackConfig(prefill="(", option_labels=("A", "B")), "(", ("A", "B")),
        (FeedbackConfig(form="text"), "", (" (A)", " (B)")),
        (FeedbackConfig(form="text", prefill="(", option_labels=("A", "B")), " (", ("A", "B")),
        (FeedbackConfig(reasoning=ReasoningConfig()), "", (" (A)", " (B)")),
        (FeedbackConfig(reasoning=ReasoningConfig(closing="So:\n")), "", ("(A)", "(B)")),
    ],
)
def test_how_an_answer_goes_on(make_run, config, prefill, labels) -> None:
    form = option_tokens.answer_form(config, make_run().constitution)
    assert (form.prefill, form.labels) == (prefill, labels)


def test_statistics_of_each_principle() -> None:
    asked = [
        (("p", "q"), PairLabel(0.0, (0.9, 0.5), (0.3, 0.5))),  # p: mean 0.6, orders disagree
        (("p",), PairLabel(0.0, (0.8,), (0.6,))),  # mean 0.7, both say A
    ]
    p, q, r = principle_statistics(["p", "q", "r"], asked)
    assert (p["n"], q["n"], r["n"]) == (2, 1, 0)
    assert p["order_agreement"] == 0.5
    assert p["position_bias"] == pytest.approx((0.6 + 0.2) / 2 / 2)  # mean excess of the first place, halved
    assert p["mean_confidence"] == pytest.approx(0.65)
    assert p["entropy"] == pytest.approx((entropy(0.6) + entropy(0.7)) / 2)
    assert q["entropy"] == pytest.approx(1.0)
    assert r["entropy"] is None
    assert principle_statistics(["p"], [(("p",), PairLabel(0.9, (0.9,), ()))])[0]["order_agreement"] is None


def test_orders_agree_where_both_prefer_the_same_answer() -> None:
    assert agree(0.9, 0.6) and agree(0.1, 0.4)
    assert not agree(0.9, 0.4) and not agree(0.1, 0.6)


def test_entropy_in_bits() -> None:
    assert [entropy(p) for p in (0.0, 0.5, 1.0)] == [0.0, 1.0, 0.0]
    assert entropy(0.25) == pytest.approx(0.25 * 2 + 0.75 * math.log2(4 / 3))


def test_sl_compares_its_own_answers(make_run) -> None:
    run = make_run(models=ModelsConfig(feedback="sl"))
    assert "feedback" not in run.config.own_models
    assert labelling.model_path(run, "feedback") == str(run.run_dir / "sft" / "model")
    assert run.run_dir / "sft" / "model" in labelling.inputs(run)
