"""What is refused, and what is kept apart, before the first stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import MistralConfig

from cai_dist.config.data import ComparisonSource, DataConfig, PromptSource, RankedSource, RatingSource
from cai_dist.config.loading.load import build_run
from cai_dist.config.run import ModelsConfig, RunConfig
from cai_dist.errors import ConfigError, DataError
from cai_dist.stages import prepare
from cai_dist.stages.execution.worker_groups import export_model
from cai_dist.stages.prepare import check_context, settings
from cai_dist.stages.tables.records import read_comparisons, read_prompts, read_ranked
from tests.tiny import save_llama


def test_a_context_that_the_model_was_not_made_for_is_refused(make_run, tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model", tied=True, seed=0)
    short = {stage: {"sampling": {"max_new_tokens": 8}} for stage in ("revise", "feedback", "ppo", "evaluate")}
    check_context(make_run(models=ModelsConfig(context=128), **short), "assistant", model)
    run = make_run(models=ModelsConfig(context=129), **short)
    with pytest.raises(ConfigError, match=r"models.context=129: models.assistant .* takes at most 128 tokens"):
        check_context(run, "assistant", model)


def test_a_window_narrower_than_the_context_is_refused_where_the_model_is_trained_packed(make_run, tmp_path) -> None:
    MistralConfig(sliding_window=32).save_pretrained(tmp_path / "model")
    short = {stage: {"sampling": {"max_new_tokens": 8}} for stage in ("revise", "feedback", "ppo", "evaluate")}

    def check(role: str, context: int, layout: str = "packed") -> None:
        models = ModelsConfig(context=context, layout=layout)
        check_context(make_run(models=models, **short), role, str(tmp_path / "model"))

    check("pretrained", 32)
    with pytest.raises(ConfigError, match=r"^models.context=33: models.pretrained .*; set models.layout=padded$"):
        check("pretrained", 33)
    check("pretrained", 33, "padded")
    check("assistant", 33)


def test_another_context_is_checked_again() -> None:
    one, other = (settings(RunConfig(name="t", models=ModelsConfig(context=n))) for n in (256, 512))
    assert one != other


def test_an_export_is_whole_or_not_there_and_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def half(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise ConnectionError

    with pytest.raises(ConnectionError):
        export_model(half, target)
    assert list(tmp_path.iterdir()) == []
    export_model(lambda folder: (folder / "config.json").write_text("{}"), target)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("feedback", [{"endpoint": {"url": "http://127.0.0.1:1/v1", "model": "m"}}, {}])
def test_which_models_are_the_runs_own_is_a_setting(feedback) -> None:
    # `models.json` has no feedback model where a server or SL-CAI compares: without that it must be written anew.
    config = build_run({"name": "t", "feedback": feedback, "models": {} if feedback else {"feedback": "sl"}})
    plain = build_run({"name": "t"})
    assert set(plain.own_models) - set(config.own_models) == {"feedback"}
    assert settings(config) != settings(plain)


def test_nothing_learns_from_what_is_held_out_and_what_goes_is_counted(make_run, tmp_path: Path) -> None:
    said = [f"question number {n} about the weather" for n in range(40)]

    def lines(name: str, rows: list[dict]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    answers = [{"text": "yes", "pm_score": 2}, {"text": "no", "pm_score": 0}]
    prompts = {"source": lines("p.jsonl", [{"prompt": text} for text in said[:30]]), "heldout": 10}
    pairs = lines("c.jsonl", [{"prompt": text, "chosen": "yes", "rejected": "no"} for text in said[10:]])
    ranked = lines("r.jsonl", [{"question": text, "answers": answers} for text in said])
    data = DataConfig(
        red_team=PromptSource(**prompts),
        helpful=PromptSource(**prompts),
        helpful_comparisons=ComparisonSource(source=pairs, limit=20, heldout=10),
        ranked_answers=RankedSource(source=ranked),
    )
    run = make_run(data=data)
    folder = run.folder("prepare")
    prepare._tables(run)
    kept = {kind: read_prompts(folder / f"{kind}.parquet") for kind in ("red_team", "helpful")}
    human = [x.comparison for x in read_comparisons(folder / "human.parquet")]
    opened = [(p.turns[0].text, p.split) for p in (*kept["red_team"], *kept["helpful"], *(c.prompt for c in human))]
    held_out = {text for text, split in opened if split == "heldout"}
    questions = {q.turns[0].text for q in read_ranked(folder / "ranked.parquet")}
    assert held_out and questions == set(said) - held_out
    assert not held_out & {text for text, split in opened if split == "train"}
    [line] = [x for x in map(json.loads, (run.run_dir / "metrics.jsonl").open()) if x["stage"] == "prepare_held_out"]
    assert line["ranked"] == len(said) - len(questions) > 0
    trained = [split for _, split in opened].count("train")
    assert line["prompts"] + line["comparisons"] == 20 + 20 + 20 - trained > 0


@pytest.mark.parametrize(("left", "said"), [(1, "not held out"), (2, "same opening")])
def test_ratings_that_are_too_few_without_the_held_out_are_refused_at_once(make_run, tmp_path, left, said) -> None:
    """Ten ratings, all but some of prompts that are held out: enough for the file, too few to learn from."""
    texts = [f"question {n} of the day" for n in range(10)]
    for name, rows in (
        ("red.jsonl", [{"prompt": t} for t in texts]),
        ("more.jsonl", [{"prompt": f"another {n} thing"} for n in range(9)]),
        ("r.jsonl", [{"prompt": texts[0], "response": f"a{n}", "rating": 1} for n in range(10 - left)]),
    ):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "r.jsonl").open("a") as file:
        file.writelines(json.dumps({"prompt": "new ?", "response": f"a{n}", "rating": n}) + "\n" for n in range(left))
    run = make_run(
        data=DataConfig(
            red_team=PromptSource(source=str(tmp_path / "red.jsonl"), heldout=9),
            helpful=PromptSource(source=str(tmp_path / "more.jsonl"), heldout=1),
            helpful_comparisons=ComparisonSource(source="none"),
            harm_ratings=RatingSource(source=str(tmp_path / "r.jsonl")),
        )
    )  # fmt: skip
    with pytest.raises(DataError, match=f"^data.harm_ratings: .*{said}[^\n]*$"):
        prepare.execute(run)
    assert not (run.run_dir / "prepare" / "models.json").exists()


@pytest.mark.parametrize("role", ["assistant", "pretrained", "feedback"])
def test_a_chat_template_that_cannot_be_used_is_refused_before_anything_is_made(
    make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """Of whichever model: one that drops the assistant's words, here."""
    from cai_dist.world.tokenizer import build_tokenizer

    sources = {}
    for name in ("good", "bad"):
        sources[name] = save_llama(tmp_path / name, tied=True, seed=0)
        tokenizer = build_tokenizer()
        if name == "bad":
            tokenizer.chat_template = tokenizer.chat_template.replace("+ message['content'] + ' <eos> '", "+ ' <eos> '")
        tokenizer.save_pretrained(tmp_path / name)
    roles = {name: sources["bad" if name == role else "good"] for name in ("assistant", "pretrained", "feedback")}
    short = {stage: {"sampling": {"max_new_tokens": 8}} for stage in ("revise", "feedback", "ppo", "evaluate")}
    run = make_run(models=ModelsConfig(context=128, **roles), data=PROMPTS_ONLY, **short)
    monkeypatch.setattr(prepare, "_tables", lambda *_: [])
    with pytest.raises(
        ConfigError, match=r"the chat template of bad leaves out the words of the assistant; set models"
    ):
        prepare.execute(run)
    assert not (tmp_path / "t" / "prepare" / "models.json").exists()


PROMPTS_ONLY = DataConfig(
    red_team=PromptSource(source="r.jsonl"),
    helpful=PromptSource(source="h.jsonl"),
    helpful_comparisons=ComparisonSource(source="none"),
    ranked_answers=RankedSource(source="none"),
    harm_ratings=RatingSource(source="none"),
)
