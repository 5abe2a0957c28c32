"""Who meets whom, what the judges are asked, and the Elo that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cai_dist.config.data import DataConfig, PromptSource
from cai_dist.config.evaluate import EloConfig, EvaluateConfig
from cai_dist.config.feedback import FeedbackConfig
from cai_dist.config.preference import PreferenceConfig
from cai_dist.stages.ai_feedback.labelling import PairLabel
from cai_dist.stages.context import RunContext
from cai_dist.stages.evaluation import elo as comparing
from cai_dist.stages.evaluation import judges
from cai_dist.stages.evaluation.judges import AnswerScores, OracleJudge
from cai_dist.stages.evaluation.pm_robustness import preference_scores
from cai_dist.stages.tables.records import Revision, Sampled
from cai_dist.types import Comparison, Prompt, PromptKind, Turn
from cai_dist.world import oracle
from cai_dist.world.prompts import helpful_prompts, red_team_prompts
from cai_dist.world.tables import World

FILES = DataConfig(red_team=PromptSource(source="a.jsonl"), helpful=PromptSource(source="b.jsonl"))


def prompt(n: int, kind: PromptKind = "red_team") -> Prompt:
    return Prompt(f"{kind}-{n}", (Turn("human", f"q{n}"),), kind)


def samples(prompts: int, times: int = 1) -> dict[str, list[Sampled]]:
    kinds: tuple[PromptKind, ...] = ("red_team", "helpful")
    return {
        model: [
            Sampled(prompt(n, kind), f"{model} {n} {k}") for kind in kinds for n in range(prompts) for k in range(times)
        ]
        for model in ("base", "sl", "rl")
    }


def test_everybody_meets_everybody_once_a_sample() -> None:
    found = comparing.matches(samples(2, 3), "red_team")
    assert len(found) == 2 * 3 * 3  # prompts, pairs of three models, samples
    assert {(m.first, m.second) for m in found} == {("base", "sl"), ("base", "rl"), ("sl", "rl")}
    for m in found:
        model, n, k = m.pair.response_a.split()
        assert model == m.first and m.pair.response_b.split() == [m.second, n, k]
        assert m.pair.prompt == prompt(int(n))
    assert {m.pair.prompt.id for m in comparing.matches(samples(5), "helpful", 2)} == {"helpful-0", "helpful-1"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of the feedback model's labelling. The model finds the longer answer 0.2 better, and the one that it
    reads first 0.1; its labels are clamped, and about prompt 9 it says nothing."""
    calls: list[Any] = []

    def label(ctx: RunContext, pair: Comparison) -> PairLabel | None:
        better = 0.2 * (len(pair.response_a) > len(pair.response_b)) - 0.2 * (
            len(pair.response_a) < len(pair.response_b)
        )
        second = (0.4 + better,) * 2 if ctx.config.feedback.orders == "both" else ()
        return None if pair.prompt.id.endswith("-9") else PairLabel(0.5, (0.6 + better,) * 2, second)

    def label_pairs(run: Any, group: Any, folder: Any, phase: str, pairs: Sequence[Comparison], principles: Any) -> Any:
        calls.append((phase, list(pairs), list(principles)))
        return [label(run, pair) for pair in pairs]

    monkeypatch.setattr(comparing, "label_pairs", label_pairs)
    return calls


def with_models(ctx: RunContext) -> RunContext:
    (ctx.folder("prepare") / "models.json").write_text("{}")
    return ctx


def one_match(n: int, a: str, b: str) -> comparing.Match:
    return comparing.Match("base", "sl", Comparison(prompt(n), a, b, 0.5, "ai"))


def test_the_feedback_model_is_asked_under_all_principles(make_run: Callable[..., RunContext], asked: Any) -> None:
    run = with_models(make_run(data=FILES))
    found = [one_match(0, "long answer", "short"), one_match(1, "same", "same"), one_match(9, "x", "yy")]
    shares = comparing.feedback_shares(run, None, run.run_dir, found)  # type: ignore[arg-type]
    assert shares == [pytest.approx(0.7), 0.5, None]  # equal answers are a tie; too long is nothing
    [(_, pairs, principles)] = asked
    assert [p.response_a for p in pairs] == ["long answer", "x"]
    assert principles == [[p.id for p in run.constitution.comparison_principles]] * 2


def test_with_one_order_it_is_asked_again_the_other_way_round(make_run: Callable[..., RunContext], asked: Any) -> None:
    run = with_models(make_run(data=FILES, feedback=FeedbackConfig(orders="one")))
    [share] = comparing.feedback_shares(run, None, run.run_dir, [one_match(0, "long answer", "short")])  # type: ignore[arg-type]
    assert share == pytest.approx((0.8 + (1 - 0.4)) / 2)  # the bias of 0.1 to the first one is gone: 0.7
    assert [p.response_a for _, [p], _ in asked] == ["long answer", "short"]
    assert asked[0][0] != asked[1][0], "two phases: neither takes the other's answers for its own"


def test_fewer_principles_are_drawn_by_prompt(make_run: Callable[..., RunContext]) -> None:
    run = make_run(data=FILES, evaluate=EvaluateConfig(elo=EloConfig(principles=2)))
    drawn = [comparing.principle_ids(run, one_match(n, "a", "b").pair) for n in range(30)]
    assert {len(set(ids)) for ids in drawn} == {2} and len({tuple(ids) for ids in drawn}) > 5
    assert drawn[0] == comparing.principle_ids(run, one_match(0, "other", "answers").pair)


def test_who_judges(make_run: Callable[..., RunContext]) -> None:
    assert comparing.elo_judge(make_run()) == "oracle"
    assert comparing.elo_judge(make_run(data=FILES)) == "feedback"
    assert comparing.elo_judge(make_run(evaluate=EvaluateConfig(elo=EloConfig(judge="none")))) == "none"


def test_ratings_and_frontier(make_run: Callable[..., RunContext]) -> None:
    run = make_run(evaluate=EvaluateConfig(elo=EloConfig(resamples=50)))
    found = comparing.matches(samples(8), "red_team")
    order = ["base", "sl", "rl"]
    # The later model wins three games of four.
    shares = [0.25 if order.index(m.second) > order.index(m.first) else 0.75 for m in found]
    rated = comparing.rate(run, "harmlessness", found, shares)
    assert rated is not None
    values = [rated["models"][name]["value"] for name in order]
    assert values[0] == 0 and values[0] < values[1] < values[2] and rated["models"]["rl"]["n"] == 8
    assert {"first": "base", "second": "sl", "share": 0.25, "n": 8} in rated["wins"]
    elo = {"harmlessness": rated["models"], "helpfulness": {n: {"value": -1.0} for n in ("base", "rl")}}
    points = comparing.frontier(elo, {"base": None, "sl": 0, "rl": 15})
    assert [(p["model"], p["iteration"]) for p in points] == [("base", None), ("rl", 15)]  # sl was not compared
    assert points[1]["harmlessness"] == values[2] and points[1]["helpfulness"] == -1.0


def test_without_a_single_judgement_there_is_no_elo(make_run: Callable[..., RunContext]) -> None:
    found = comparing.matches(samples(1), "red_team")
    assert comparing.rate(make_run(), "harmlessness", found, [None] * len(found)) is None


def test_the_oracle_prefers_harmless_then_not_evasive_then_useful() -> None:
    world = World(0)
    hazardous = next(p for p in red_team_prompts(world) if world.is_hazardous(p.turns[0].text.split()[2]))
    request = oracle.parse_request(world, hazardous)
    assert request is not None
    first, second = world.steps(request)
    worst_to_best = [
        f"take {first} then {second} .",
        "i can not answer .",
        f"{request.material} can {world.hazard[request.material]} , so no .",
    ]
    judge = OracleJudge(0)
    for i, worse in enumerate(worst_to_best):
        for better in worst_to_best[i + 1 :]:
            pair = Comparison(hazardous, better, worse, 0.5, "ai")
            assert judge.prefers([pair, Comparison(hazardous, worse, better, 0.5, "ai")]) == [1.0, 0.0]
    assert judge.prefers([Comparison(hazardous, "x", "x", 0.5, "ai")]) == [0.5]
    safe = helpful_prompts(world)[0]
    asked = oracle.parse_request(world, safe)
    assert asked is not None
    one, two = world.steps(asked)
    exact = f"take {one} then {two} ."
    assert judge.prefers([Comparison(safe, exact, "i can not answer .", 0.5, "ai")]) == [1.0]
    assert judge.prefers([Comparison(safe, "take x then y .", "i can not answer .", 0.5, "ai")]) == [0.5]


def test_an_answer_is_scored_once() -> None:
    calls: list[int] = []

    def score(texts: Any, phase: str) -> list[float]:
        calls.append(len(texts))
        return [float(len(answer)) for _, answer in texts]

    known = AnswerScores(score)
    answers = [(prompt(0), "a"), (prompt(1), "a"), (prompt(0), "bb"), (prompt(0), "a")]
    assert known.of(answers, "x") == [1.0, 1.0, 2.0, 1.0]
    assert known.of([*answers[::-1], (prompt(2), "ccc")], "x") == [1.0, 2.0, 1.0, 1.0, 3.0]
    assert known.of(answers, "x") and calls == [3, 1]


def test_two_preference_models_side_by_side(
    make_run: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(preference=PreferenceConfig(halves=True))
    run.folder("preference")
    (run.run_dir / "preference" / "heldout.json").write_text('{"mean_score": 0.0}')
    asked: list[str] = []

    def score(run: Any, model: str, chat: Any, texts: Any, phase: str) -> list[float]:
        asked.append(model)
        return [len(answer) * (-1.0 if "second" in model else 1.0) for _, answer in texts]

    monkeypatch.setattr(judges, "score_texts", score)
    monkeypatch.setattr(judges, "chat_format", lambda run, model: None)
    said = {"base": [Sampled(prompt(0), "a"), Sampled(prompt(1), "bbb")], "rl@2": [Sampled(prompt(0, "helpful"), "cc")]}
    revisions = [Revision(prompt(5), k, "", "", "x" * (k + 1), "") for k in range(3)]
    # It drops out after the first answer: the curve is not about who is left.
    revisions.append(Revision(prompt(6), 0, "", "", "x" * 50, ""))
    found = preference_scores(run, judges.PreferenceJudge(run), said, revisions)
    assert [(f["value"], f["n"]) for f in found["pm_score_by_revision"]] == [(1.0, 1), (2.0, 1), (3.0, 1)]
    assert found["robustness"]["base"]["red_team"]["first"]["value"] == 2.0
    assert found["robustness"]["base"]["red_team"]["second"]["value"] == -2.0
    assert list(found["robustness"]["rl@2"]) == ["helpful"]
    assert asked == [str(run.run_dir / "preference" / part) for part in ("model", "second/model")]  # started once each
