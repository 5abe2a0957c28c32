"""Stage 4 on a fake group: what each model learns from, what is never learned from, resuming, and every figure."""

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

from cai_dist.config.data import DataConfig, RankedSource
from cai_dist.config.preference import PmPretrainingConfig, PreferenceConfig
from cai_dist.config.run import RunConfig
from cai_dist.config.training import LoraConfig, ShardingConfig, TrainConfig
from cai_dist.data.chat import ChatFormat
from cai_dist.errors import ConfigError, DataError, Interrupted
from cai_dist.losses.calibration import wilson_interval
from cai_dist.stages import preference
from cai_dist.stages.comparisons import pm_calibration, pm_pretraining
from cai_dist.stages.comparisons.pairs import disjoint_halves, log_heldout, training_comparisons
from cai_dist.stages.comparisons.pm_calibration import Measured
from cai_dist.stages.context import RunContext
from cai_dist.stages.tables.records import Labelled, read_ranked, write_comparisons, write_ranked
from cai_dist.types import Comparison, LabelledPair, Prompt, RankedAnswer, RankedQuestion, StepShard, Turn
from cai_dist.world.tokenizer import build_tokenizer

CHAT = ChatFormat(build_tokenizer())
TRAIN = TrainConfig(batch_size=8, checkpoint_every=2, sharding=ShardingConfig(ranks=2, micro_batch=2))
PRETRAINING = PmPretrainingConfig(good="safe", bad="wrong", train=TRAIN, language_weight=0.3)
RANKED = DataConfig(ranked_answers=RankedSource(source="world", limit=16))


def comparison(n: int, source: Any = "ai", split: Any = "train", p_a: float = 0.9) -> Comparison:
    """Answers of 1 + n % 5 words and two; three comparisons to a prompt."""
    prompt = Prompt(
        f"{source}-{split}-{n // 3}",
        (Turn("human", f"weave rope belum ? {source} {split} {n // 3}"),),
        "red_team",
        split,
    )
    return Comparison(prompt, "grind " * (1 + n % 5), "press .", p_a, source)


class Scored:
    """A group of two ranks: it counts steps and notes what it was asked and with what."""

    def __init__(self, kind: str, model: str, settings: dict[str, Any]) -> None:
        self.kind, self.model, self.settings = kind, model, settings
        self.steps, self.trained = 0, []

    def __len__(self) -> int:
        return 2

    def scatter(self, phase: str, method: str, shards: Sequence[StepShard[Any]]) -> list[Any]:
        items = [x for shard in shards for micro in shard.micro_batches for x in micro]
        assert method == "train_step" and {shard.denominator for shard in shards} == {float(len(items))}
        self.trained += items
        self.steps += 1
        return [{"loss": 1.0 / self.steps}] * 2

    def broadcast(self, phase: str, method: str, folder: str) -> list[int]:
        path = Path(folder) / "steps"
        if method == "load":
            self.steps = int(path.read_text())
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(self.steps))
        return [0, 0]


@pytest.fixture
def stage(make_run: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that gives a run as far as stage 4, and the groups that it has started. The score of an answer is its
    number of words, by the second model less."""
    groups: list[Scored] = []

    @contextmanager
    def start(ctx: RunContext, role: str, kind: str, model: str, *_: Any, **settings: Any) -> Iterator[Scored]:
        groups.append(Scored(kind, model, settings))
        yield groups[-1]

    def scores(ctx: RunContext, model: str, chat: Any, texts: Sequence[Any], phase: str) -> list[float]:
        return [len(answer.split()) * (0.5 if "second" in model else 1.0) for _, answer in texts]

    for module in (preference, pm_pretraining):
        monkeypatch.setattr(module, "trained_model", start)
    monkeypatch.setattr(preference, "chat_format", lambda run, model: CHAT)
    monkeypatch.setattr(preference, "model_path", lambda run, role: "BASE")
    monkeypatch.setattr(pm_calibration, "score_texts", scores)

    def make(**sections: Any) -> RunContext:
        settings = {"helpful_fraction": 0.25, "train": TRAIN, "pretraining": PRETRAINING}
        run = make_run(preference=PreferenceConfig(**{**settings, **sections.pop("preference", {})}), **sections)
        found = [comparison(n) for n in range(30)] + [comparison(n, split="heldout", p_a=0.8) for n in range(9)]
        write_comparisons(run.folder("feedback") / "comparisons.parquet", [Labelled(c, c.p_a, 0, 0) for c in found])
        human = [comparison(n, "human", p_a=1.0) for n in range(20)]
        human += [comparison(n, "human", "heldout", float(n % 2)) for n in range(12)]
        write_comparisons(run.folder("prepare") / "human.parquet", [Labelled(c, c.p_a, 0, 0) for c in human])
        write_ranked(run.folder("prepare") / "ranked.parquet", ranked())
        return run

    return make, groups


def ranked() -> list[RankedQuestion]:
    answers = (RankedAnswer("melt .", 4), RankedAnswer("crush melt .", 0), RankedAnswer("soak .", 0))
    return [RankedQuestion(f"r{n}", (Turn("human", "make rope belum ?"),), answers) for n in range(16)]


def finish(ctx: RunContext, groups: list[Scored], stop: Callable[[], bool]) -> int:
    """The stage, interrupted wherever `stop` says so; returns how often it was started."""
    ctx.should_stop = stop
    for count in range(1, 60):
        try:
            preference.execute(ctx)
            return count
        except Interrupted:
            continue
    raise AssertionError("it never comes to its end")


def test_the_table_of_ranked_answers_comes_back(tmp_path: Path) -> None:
    write_ranked(tmp_path / "r.parquet", ranked())
    assert read_ranked(tmp_path / "r.parquet") == ranked()


def test_without_ranked_answers_it_is_the_plain_stage(stage: Any) -> None:
    make, groups = stage
    run = make()
    outputs = preference.execute(run)
    folder = run.run_dir / "preference"
    assert outputs == [folder / "model", folder / "heldout.json"]
    assert sorted(p.name for p in folder.iterdir()) == ["heldout.json", "model"]
    [group] = groups
    assert (group.kind, group.model, group.settings) == ("preference", "BASE", {"margin": 0.0, "lora": None})
    # 30 of the AI's and a quarter of the whole from people, once each; nothing that is held out.
    assert Counter(p.source for p in group.trained) == {"ai": 30, "human": 10}
    assert run.run_dir / "prepare" / "ranked.parquet" not in preference.inputs(run)


def test_ranked_answers_come_first_then_comparisons_from_that_model(stage: Any) -> None:
    make, groups = stage
    lora = LoraConfig(rank=3)
    run = make(data=RANKED, preference={"margin": 1.5, "lora": lora})
    preference.execute(run)
    first, second = groups
    pretrained = run.run_dir / "preference" / "pretraining" / "model"
    assert (first.kind, first.model) == ("pm_pretraining", "BASE")
    assert first.settings == {"language_weight": 0.3, "lora": lora}
    assert (second.kind, second.model) == ("preference", str(pretrained))
    assert second.settings == {"margin": 1.5, "lora": lora}
    assert len(first.trained) == 32 and all(isinstance(p, LabelledPair) for p in first.trained)
    assert sorted(p.name for p in (run.run_dir / "preference").iterdir()) == ["heldout.json", "model"]
    assert run.run_dir / "prepare" / "ranked.parquet" in preference.inputs(run)


def test_cut_off_anywhere_it_ends_with_the_same_files_and_no_step_twice(stage: Any) -> None:
    make, groups = stage
    run = make(data=RANKED, preference={"halves": True})
    preference.execute(run)
    whole = [(g.kind, g.model, g.steps, list(g.trained)) for g in groups]
    folder = run.run_dir / "preference"
    kept = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert [kind for kind, *_ in whole] == ["pm_pretraining", "preference", "preference"]

    folder.rename(run.run_dir / "aside")
    groups.clear()
    assert finish(run, groups, lambda: True) > 5
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == kept
    runs = [[g for g in groups if (g.kind, g.model) == (kind, model)] for kind, model, *_ in whole[:2]]
    assert [p for g in runs[0] for p in g.trained] == whole[0][3]
    assert [p for g in runs[1] for p in g.trained] == whole[1][3] + whole[2][3]
    logged = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    for name in ("pm_pretraining", "preference", "preference_second"):
        steps = [x["step"] for x in logged if x["stage"] == name]
        assert steps == list(range(1, len(steps) + 1)) and steps


def test_a_finished_part_is_not_made_again(stage: Any) -> None:
    make, groups = stage
    run = make(data=RANKED, preference={"halves": True})
    preference.execute(run)
    # As if it had been killed before the stage was noted as done: nothing is trained, figures are the same.
    before = (run.run_dir / "preference" / "heldout.json").read_bytes()
    groups.clear()
    preference.execute(run)
    assert groups == [] and (run.run_dir / "preference" / "heldout.json").read_bytes() == before
    # As if the second model had never been exported: it alone is trained, from the pretrained model.
    shutil.rmtree(run.run_dir / "preference" / "second" / "model")
    preference.execute(run)
    assert [g.kind for g in groups] == ["pm_pretraining", "preference"]


def test_halves_share_no_prompt_and_are_all(stage: Any) -> None:
    everything = [comparison(n) for n in range(31)] + [comparison(n, "human") for n in range(20)]
    first, second = disjoint_halves(everything, 0)
    assert Counter(map(repr, first + second)) == Counter(map(repr, everything))
    assert not {c.prompt.id for c in first} & {c.prompt.id for c in second}
    for source in ("ai", "human"):
        sizes = [sum(c.source == source for c in half) for half in (first, second)]
        assert abs(sizes[0] - sizes[1]) <= 3  # the comparisons of one prompt stay together
    assert disjoint_halves(everything, 0) == (first, second) != disjoint_halves(everything, 1)


def test_halves_share_no_conversation_across_sources(stage: Any) -> None:
    # Ids differ: they hash the kind. Five of the AI's and one of people for each of 20 conversations, and some alone.
    def of(n: int, source: str, k: int) -> Comparison:
        turns = (Turn("human", f"conversation {n}"),)
        return Comparison(Prompt(f"{source}-{n}", turns, "red_team"), "x " * k, ".", 1.0, source)  # type: ignore[arg-type]

    everything = [of(n, "ai", k) for n in range(20) for k in range(1, 6)]
    everything += [of(n, "human", 1) for n in range(26)]
    halves = disjoint_halves(everything, 0)
    first, second = ({c.prompt.turns for c in half} for half in halves)
    assert first and second and not first & second
    assert Counter(map(repr, halves[0] + halves[1])) == Counter(map(repr, everything))
    for source, most in (("ai", 5), ("human", 2)):
        sizes = [sum(c.source == source for c in half) for half in halves]
        assert abs(sizes[0] - sizes[1]) <= most


def test_each_model_learns_its_half(stage: Any) -> None:
    make, groups = stage
    run = make(preference={"halves": True})
    outputs = preference.execute(run)
    folder = run.run_dir / "preference"
    assert outputs == [folder / "model", folder / "second" / "model", folder / "heldout.json"]
    one, other = groups
    assert len(one.trained) + len(other.trained) == 40
    assert abs(len(one.trained) - len(other.trained)) <= 4
    halves = json.loads((folder / "heldout.json").read_text())["halves"]
    # Both score by length, one half as far: they always agree.
    assert (halves["agreement"], halves["correlation"]) == (1.0, pytest.approx(1.0))
    assert set(halves["second"]) == {"ai", "human"}


def test_a_share_of_the_labels_is_drawn_by_the_seed(stage: Any, make_run: Callable[..., RunContext]) -> None:
    make, _ = stage
    run = make()
    tenth = training_comparisons(run, "preference", 0.0, 0.1)
    assert len(tenth) == 3 and all(c in training_comparisons(run, "preference", 0.0) for c in tenth)
    half = training_comparisons(run, "preference", 0.25, 0.5)
    assert Counter(c.source for c in half) == {"ai": 15, "human": 5}
    # More labels hold the fewer ones.
    texts = [repr(c) for c in training_comparisons(run, "preference", 0.0, 0.5)]
    assert all(repr(c) in texts for c in tenth)
    assert len(training_comparisons(run, "preference", 0.0, 1e-9)) == 1
    other = make_run(seed=1)
    assert training_comparisons(other, "preference", 0.0, 0.1) != tenth


def test_pretraining_without_a_pair_that_fits_is_one_line(stage: Any) -> None:
    make, _ = stage
    run = make(data=RANKED)
    write_ranked(run.run_dir / "prepare" / "ranked.parquet", [])
    with pytest.raises(DataError, match="no pair of answers among 0 questions") as caught:
        preference.execute(run)
    assert "\n" not in str(caught.value)


def test_labels_are_checked_before_a_worker_starts(stage: Any) -> None:
    make, groups = stage
    run = make(data=RANKED, preference={"pretraining": PmPretrainingConfig(good="SPLENDID:", bad="AWFUL:")})
    with pytest.raises(ConfigError, match="preference.pretraining.good='SPLENDID:'"):
        preference.execute(run)
    assert groups == []


def test_settings_that_do_not_matter_start_nothing_anew() -> None:
    base = RunConfig(name="t")
    slow = base.model_copy(update={"preference": PreferenceConfig(pretraining=PRETRAINING)})
    assert preference.settings(base) == preference.settings(slow)
    with_ranked = slow.model_copy(update={"data": RANKED})
    assert preference.settings(with_ranked) != preference.settings(base.model_copy(update={"data": RANKED}))


# figures


def measured(margin: float, p_a: float, longer_by: int = 0, prompt: str = "p", source: Any = "ai") -> Measured:
    c = Comparison(Prompt(prompt, (Turn("human", prompt),), "red_team", "heldout"), "a", "b", p_a, source)
    return Measured(c, (margin, 0.0), (10 + longer_by, 10))


def test_what_is_measured_on_held_out_comparisons(stage: Any) -> None:
    make, _ = stage
    run = make()
    preference.execute(run)
    found = json.loads((run.run_dir / "preference" / "heldout.json").read_text())
    ai, human = found["sources"]["ai"], found["sources"]["human"]
    # The answers A have 1..5 words, the answers B two; the AI says A with 0.8, people by turns.
    words = [1 + n % 5 for n in range(9)]
    assert (found["n"], ai["n"], human["n"]) == (9, 9, 12)
    # Of two words on either side the model says nothing: half right.
    assert found["accuracy"] == ai["accuracy"] == pytest.approx(sum((w > 2) + (w == 2) / 2 for w in words) / 9)
    assert (ai["prompts"], human["prompts"]) == (3, 4)
    assert found["ece"] == ai["ece"] and found["mean_score"] == ai["mean_score"] == pytest.approx(
        sum(w + 2 for w in words) / 18
    )
    sides = [0.5 if n % 5 == 1 else float((n % 5 > 1) == bool(n % 2)) for n in range(12)]
    assert human["accuracy"] == pytest.approx(sum(sides) / 12)
    assert human["low"] < human["accuracy"] < human["high"]
    sigmas = [1 / (1 + math.exp(2 - w)) for w in words]
    assert ai["brier"] == pytest.approx(sum((s - 0.8) ** 2 for s in sigmas) / 9)
    assert sum(part["count"] for part in ai["reliability"]) == 9
    # Words are tokens here: the scores are the lengths less the end token.
    assert ai["length"]["score_correlation"] == pytest.approx(1.0)
    assert ai["length"]["longer_preferred"] == 1.0
    assert found["temperature"]["n"] + found["temperature"]["n_fit"] == 21


def test_scores_that_are_the_same_are_half_right_whichever_side_is_better() -> None:
    for p_a in (0.9, 0.1):
        assert measured(0.0, p_a).right == 0.5
    assert [measured(m, p).right for m, p in ((1.0, 0.9), (1.0, 0.1), (-1.0, 0.9), (-1.0, 0.1))] == [1, 0, 0, 1]
    # A model that scores everything alike knows nothing: 1/2, and not the share of labels that say B.
    blind = [measured(0.0, 0.9 if n < 3 else 0.1, 1, prompt=f"p{n}") for n in range(12)]
    found = pm_calibration.source_figures(blind, calibrate=False)
    assert found["accuracy"] == 0.5 and found["low"] < 0.5 < found["high"]
    assert found["length"]["longer_preferred"] == 0.5
    sure = [measured(1.0, 0.9, prompt=f"p{n}") for n in range(12)]
    assert pm_calibration.agreement_figures(blind, sure)["agreement"] == 0.5
    assert pm_calibration.agreement_figures(blind, blind)["agreement"] == 1.0


def test_held_out_accuracy_takes_ties_as_halves(make_run: Callable[..., RunContext]) -> None:
    scores = [(1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, 2.0)]
    assert log_heldout(make_run(), "preference", scores, [0.9] * 4)["accuracy"] == 0.5


def test_the_interval_of_accuracy_is_over_prompts() -> None:
    # Eight pairs to a prompt that stand and fall together are worth one each.
    right = [1, 1, 1, 1, 1, 1, 0, 0, 1, 0]
    one_each = [measured(1.0 if r else -1.0, 0.9, prompt=f"p{n}") for n, r in enumerate(right)]
    eight_each = [m for m in one_each for _ in range(8)]
    one, eight = (pm_calibration.source_figures(found, calibrate=False) for found in (one_each, eight_each))
    assert (one["n"], one["prompts"], eight["n"], eight["prompts"]) == (10, 10, 80, 10)
    assert (one["low"], one["high"]) == pytest.approx(wilson_interval(7, 10))
    assert eight["accuracy"] == one["accuracy"]
    assert eight["low"] <= one["low"] and eight["high"] >= one["high"]


def test_length_by_hand() -> None:
    found = pm_calibration.length_figures(
        [
            measured(1.0, 0.9, 3),  # longer, better, scored higher
            measured(1.0, 0.2, 2),  # longer, worse, scored higher: wrong
            measured(-1.0, 0.9, -1),  # shorter, better, scored lower: wrong; the longer one is worse
            measured(-2.0, 0.1, 4),  # longer, worse, scored lower
            measured(5.0, 0.9, 0),  # of the same length
        ]
    )
    assert found["n"] == 4 and found["n_longer_worse"] == 3
    assert found["longer_wins"] == 1 / 4 and found["longer_preferred"] == 3 / 4
    assert found["accuracy_longer_better"] == 1.0 and found["accuracy_longer_worse"] == pytest.approx(1 / 3)
    xs, ys = [3, 2, -1, 4, 0], [1, 1, -1, -2, 5]
    mean_x, mean_y = sum(xs) / 5, sum(ys) / 5
    over = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    under = math.sqrt(sum((x - mean_x) ** 2 for x in xs) * sum((y - mean_y) ** 2 for y in ys))
    assert found["margin_correlation"] == pytest.approx(over / under)


def test_length_without_anything_to_count() -> None:
    found = pm_calibration.length_figures([measured(1.0, 0.9)])
    assert (found["n"], found["longer_wins"], found["margin_correlation"]) == (0, None, None)
    assert pm_calibration.correlation([1.0, 1.0], [0.0, 3.0]) is None


def test_the_temperature_is_fitted_on_other_prompts_than_it_is_measured_on() -> None:
    names = [f"p{n}" for n in range(40)]
    # Far too sure of itself: margins of 8, right three times in four.
    many = [measured(8.0, float(n % 4 != 0), prompt=name) for n, name in enumerate(names)]
    found = pm_calibration.temperature_figures(many)
    assert found is not None and found["n_fit"] + found["n"] == 40 and min(found["n_fit"], found["n"]) > 8
    assert found["temperature"] > 3 and found["ece_after"] < found["ece_before"]
    assert found["brier_after"] < found["brier_before"]
    # What a prompt was fitted on is never what it is measured on.
    assert pm_calibration.temperature_figures([measured(1.0, 0.9, prompt="p1")] * 5) is None


def test_how_far_two_models_agree() -> None:
    one = [measured(1.0, 0.9), measured(2.0, 0.9), measured(-1.0, 0.9), measured(3.0, 0.9)]
    other = [measured(2.0, 0.9), measured(-2.0, 0.9), measured(-2.0, 0.9), measured(6.0, 0.9)]
    found = pm_calibration.agreement_figures(one, other)
    assert (found["n"], found["agreement"]) == (4, 0.75)
    assert pm_calibration.agreement_figures(one, one)["correlation"] == pytest.approx(1.0)
