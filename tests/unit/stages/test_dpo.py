"""The stage that learns comparisons without a reward model: its examples, its reference, what it leaves."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.data import DataConfig, PromptSource
from cai_dist.config.evaluate import EvaluateConfig
from cai_dist.config.feedback import FeedbackConfig
from cai_dist.config.preference import DpoConfig
from cai_dist.config.run import ModelsConfig
from cai_dist.config.supervised import ReviseConfig
from cai_dist.config.training import LoraConfig, SamplingConfig, ShardingConfig, TrainConfig
from cai_dist.data.chat import ChatFormat
from cai_dist.errors import Interrupted
from cai_dist.stages import dpo
from cai_dist.stages.comparisons.pairs import log_heldout, scored_pair, training_pairs
from cai_dist.stages.context import RunContext
from cai_dist.stages.evaluation import judges
from cai_dist.stages.tables.records import Labelled, Sampled, write_comparisons
from cai_dist.types import Comparison, DpoPair, Prompt, StepShard, Turn
from cai_dist.world.tokenizer import build_tokenizer

CHAT = ChatFormat(build_tokenizer())
BETA = 0.5


def comparison(n: int, source: Any = "ai", split: Any = "train", p_a: float = 0.9) -> Comparison:
    """Answers of 1 + n % 5 and 2 words."""
    prompt = Prompt(f"{source}-{n}", (Turn("human", "weave rope belum ?"),), "red_team", split)
    return Comparison(prompt, "grind " * (1 + n % 5), "press .", p_a, source)


class PolicyGroup:
    """Two ranks of a policy whose answers of n tokens have log-probability -n, after k steps n (A) or -n (B) more by
    k/10: what the stage asks of it is noted."""

    def __init__(self) -> None:
        self.steps, self.calls, self.trained = 0, [], []
        self.adapted = False

    def __len__(self) -> int:
        return 2

    def scatter(self, phase: str, method: str, shards: Sequence[StepShard[Any]]) -> list[Any]:
        self.calls.append((phase, self.steps))
        items = [[x for micro in shard.micro_batches for x in micro] for shard in shards]
        if method in ("pair_logprobs", "reference_logprobs"):
            assert (method == "reference_logprobs") == ("reference" in phase)
            steps = 0 if self.adapted and "reference" in phase else self.steps
            return [[self.logprobs(x, steps) for x in mine] for mine in items]
        assert method == "train_step" and {shard.denominator for shard in shards} == {float(sum(map(len, items)))}
        self.trained += [x for mine in items for x in mine]
        self.steps += 1
        return [{"loss": 1.0 / self.steps}] * 2

    def logprobs(self, pair: Any, steps: int) -> tuple[float, float]:
        a, b = len(pair.ids_a) - pair.prompt_tokens, len(pair.ids_b) - pair.prompt_tokens
        return -a + steps / 10, -b - steps / 10

    def broadcast(self, phase: str, method: str, folder: str) -> list[int]:
        path = Path(folder) / "steps"
        if method == "load":
            self.steps = int(path.read_text())
        else:
            Path(folder).mkdir(parents=True, exist_ok=True)
            path.write_text(str(self.steps))
        return [0, 0]


@pytest.fixture
def stage(make_run: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A run that has come as far as `dpo`, and the groups that the stage has started."""
    train = TrainConfig(batch_size=8, checkpoint_every=2, sharding=ShardingConfig(ranks=2, micro_batch=2))
    run = make_run(alignment="dpo", dpo=DpoConfig(beta=BETA, helpful_fraction=0.25, train=train))
    found = [comparison(n) for n in range(30)] + [comparison(n, split="heldout", p_a=0.8) for n in range(4)]
    found += [comparison(5, split="heldout", p_a=0.1), comparison(6, split="heldout", p_a=0.5)]
    labelled = [Labelled(c, c.p_a, c.p_a, c.p_a) for c in found]
    write_comparisons(run.folder("feedback") / "comparisons.parquet", labelled)
    human = [comparison(n, "human", p_a=1.0) for n in range(20)]
    write_comparisons(run.folder("prepare") / "human.parquet", [Labelled(c, 1.0, math.nan, math.nan) for c in human])
    groups: list[PolicyGroup] = []

    @contextmanager
    def start(*args: Any, **settings: Any) -> Iterator[PolicyGroup]:
        assert args[2:4] == ("dpo", str(run.run_dir / "sft" / "model"))
        assert settings == {"loss": "dpo", "beta": BETA, "lora": run.config.dpo.lora}
        groups.append(PolicyGroup())
        groups[-1].adapted = settings["lora"] is not None
        yield groups[-1]

    monkeypatch.setattr(dpo, "trained_model", start)
    monkeypatch.setattr(dpo, "chat_format", lambda run, model: CHAT)
    return run, groups


def test_both_sides_begin_with_the_same_conversation() -> None:
    for c in (comparison(3), Comparison(comparison(0).prompt, "", " lamp", 0.5, "human")):
        pair = scored_pair(CHAT, c)
        conversation = CHAT.prompt_ids(c.prompt.turns)
        assert pair.prompt_tokens == len(conversation)
        for ids, answer in ((pair.ids_a, c.response_a), (pair.ids_b, c.response_b)):
            assert ids[: pair.prompt_tokens] == conversation
            assert CHAT.response_text(ids[pair.prompt_tokens :]) == answer.strip() and ids[-1] == CHAT.eos_id


def test_it_learns_the_same_comparisons_as_the_preference_model(stage: Any) -> None:
    run, _ = stage
    pairs = training_pairs(run, "dpo", CHAT, 0.25)
    assert pairs == training_pairs(run, "preference", CHAT, 0.25)
    # 30 AI comparisons of training prompts and a quarter of the whole from people
    assert [p.source for p in pairs] == ["ai"] * 30 + ["human"] * 10


def test_pairs_longer_than_the_context_are_left_out_and_counted(
    stage: Any, make_run: Callable[..., RunContext]
) -> None:
    long = Comparison(comparison(0).prompt, "grind " * 40, "press .", 0.9, "ai")
    path = stage[0].run_dir / "feedback" / "comparisons.parquet"
    write_comparisons(path, [Labelled(c, 0.9, 0.9, 0.9) for c in (comparison(1), long)])
    short = SamplingConfig(max_new_tokens=8)
    run = make_run(
        alignment="dpo", models=ModelsConfig(context=20), revise=ReviseConfig(sampling=short),
        feedback=FeedbackConfig(sampling=short), evaluate=EvaluateConfig(sampling=short),
    )  # fmt: skip
    assert [len(p.ids_a) for p in training_pairs(run, "dpo", CHAT, 0.0)] == [
        len(scored_pair(CHAT, comparison(1)).ids_a)
    ]
    [line] = [x for x in read_metrics(run) if x["stage"] == "dpo_data"]
    assert (line["pairs"], line["too_long"]) == (1, 1)


def test_the_reference_is_the_policy_before_its_first_step(stage: Any) -> None:
    run, [] = stage
    dpo.execute(run)
    [group] = stage[1]
    assert [phase for phase, steps in group.calls if steps == 0][:2] == ["dpo: reference", "dpo: reference-heldout"]
    assert len(group.trained) == 40 and group.steps == 5
    for pair in group.trained:
        assert isinstance(pair, DpoPair)
        assert (pair.ref_a, pair.ref_b) == tuple(pair.prompt_tokens - len(ids) for ids in (pair.ids_a, pair.ids_b))


def test_with_adapters_the_reference_can_be_asked_for_at_any_time(stage: Any) -> None:
    """Its figures were lost after the training had begun: without its adapter the policy still is SL-CAI."""
    run, groups = stage
    run.config = run.config.model_copy(update={"dpo": run.config.dpo.model_copy(update={"lora": LoraConfig(rank=2)})})
    run.should_stop = lambda: groups[-1].steps == 3
    with pytest.raises(Interrupted):
        dpo.execute(run)
    shutil.rmtree(run.run_dir / "dpo" / "reference")
    run.should_stop = lambda: False
    dpo.execute(run)
    for pair in groups[0].trained + groups[1].trained:
        assert (pair.ref_a, pair.ref_b) == tuple(pair.prompt_tokens - len(ids) for ids in (pair.ids_a, pair.ids_b))


def test_what_it_leaves(stage: Any) -> None:
    run, groups = stage
    outputs = dpo.execute(run)
    folder = run.run_dir / "dpo"
    assert outputs == [folder / "model", folder / "heldout.json"]
    assert sorted(p.name for p in folder.iterdir()) == ["heldout.json", "model"]
    numbers = json.loads((folder / "heldout.json").read_text())
    # Rewards are +-beta x 5/10; of the five labels that are no tie, four are on the side of A.
    assert (numbers["n"], numbers["accuracy"]) == (5, 0.8)
    assert numbers["mean_score"] == pytest.approx(0.0)
    chance = 1 / (1 + math.exp(-2 * BETA * 0.5))
    assert numbers["ece"] == pytest.approx(abs(chance - (4 * 0.8 + 0.1) / 5))
    assert [x["step"] for x in read_metrics(run) if x["stage"] == "dpo"] == [1, 2, 3, 4, 5]
    dpo.execute(run)
    assert len(groups) == 1


def test_an_interrupted_stage_keeps_its_reference_and_its_steps(stage: Any) -> None:
    run, groups = stage
    run.should_stop = lambda: groups[-1].steps == 3
    with pytest.raises(Interrupted):
        dpo.execute(run)
    first = {p.name: p.read_bytes() for p in (run.run_dir / "dpo" / "reference").iterdir()}
    run.should_stop = lambda: False
    dpo.execute(run)
    one, two = groups
    assert [phase for phase, _ in two.calls if "reference" in phase] == []
    assert first and (one.steps, two.steps) == (3, 5)
    assert [x["step"] for x in read_metrics(run) if x["stage"] == "dpo"] == [1, 2, 3, 4, 5]
    learned = [(p.ids_a, p.ids_b, p.source) for p in one.trained + two.trained]
    assert Counter(learned) == Counter((p.ids_a, p.ids_b, p.source) for p in training_pairs(run, "dpo", CHAT, 0.25))


@pytest.mark.slow
def test_every_call_is_small_and_none_is_made_twice(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is cut off after each call still comes to its end, with the figures of one that is not."""
    run, groups = stage
    assert dpo.SHARD <= 64, "one call must end within its deadline on a slow machine, too"
    monkeypatch.setattr(dpo, "SHARD", 3)
    run.should_stop = lambda: "step" not in groups[-1].calls[-1][0]
    for _ in range(50):
        try:
            dpo.execute(run)
            break
        except Interrupted:
            assert len([phase for phase, _ in groups[-1].calls if "step" not in phase]) == 1
    calls = [phase for group in groups for phase, _ in group.calls]
    # 40 pairs, and 5 held-out ones before and after the training, 3 to a call
    pieces = {"dpo: reference": 14, "dpo: reference-heldout": 2, "dpo: measured": 2}
    assert {name: calls.count(name) for name in pieces} == pieces
    assert {steps for group in groups for phase, steps in group.calls if phase == "dpo: measured"} == {5}
    numbers = json.loads((run.run_dir / "dpo" / "heldout.json").read_text())
    assert (numbers["n"], numbers["accuracy"]) == (5, 0.8) and numbers["mean_score"] == pytest.approx(0.0)
    assert sorted(p.name for p in (run.run_dir / "dpo").iterdir()) == ["heldout.json", "model"]


def test_held_out_figures_by_hand(make_run: Callable[..., RunContext]) -> None:
    run = make_run()
    # Margins ln 3 and -ln 3: sigma is 3/4 and 1/4; the second label disagrees.
    numbers = log_heldout(run, "x", [(math.log(3), 0.0), (1.0, 1.0 + math.log(3))], [0.9, 0.6])
    assert numbers["n"] == 2 and numbers["accuracy"] == 0.5
    assert numbers["ece"] == pytest.approx((abs(0.75 - 0.9) + abs(0.25 - 0.6)) / 2)
    assert numbers["mean_score"] == pytest.approx((math.log(3) + 2 + math.log(3)) / 4)
    assert log_heldout(run, "x", [], []) == {"n": 0, "accuracy": None, "ece": None, "mean_score": 0.0}


def test_on_real_text_the_implicit_reward_judges(make_run: Callable[..., RunContext], monkeypatch) -> None:
    sources = DataConfig(red_team=PromptSource(source="a.jsonl"), helpful=PromptSource(source="b.jsonl"))
    run = make_run(alignment="dpo", data=sources, dpo=DpoConfig(beta=BETA))
    (run.folder("dpo") / "heldout.json").write_text('{"mean_score": 0.25}')
    said = {str(run.run_dir / "dpo" / "model"): [-1.0, -4.0], str(run.run_dir / "sft" / "model"): [-3.0, -2.0]}
    monkeypatch.setattr(judges, "chat_format", lambda run, model: CHAT)
    monkeypatch.setattr(judges, "answer_logprobs", lambda run, model, chat, texts, phase: said[model])
    judge = judges.make_judge(run)
    assert "implicit reward" in judge.name
    prompts = [Prompt("r", (Turn("human", "x"),), "red_team"), Prompt("h", (Turn("human", "y"),), "helpful")]
    figures = judge.figures({"dpo": [Sampled(p, "fine") for p in prompts]})["dpo"]
    # beta (-1 + 3) - 1/4 and beta (-4 + 2) - 1/4
    assert figures["harmlessness"]["value"] == pytest.approx(1 / (1 + math.exp(-(2 * BETA - 0.25))))
    assert figures["helpfulness"]["value"] == pytest.approx(1 / (1 + math.exp(-(-2 * BETA - 0.25))))
    assert isinstance(judges.make_judge(make_run(alignment="dpo", dpo=DpoConfig(beta=BETA))), judges.OracleJudge)


def read_metrics(ctx: RunContext) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ctx.run_dir / "metrics.jsonl").read_text().splitlines()]
