"""A prompt of several turns goes through every stage with its whole conversation."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.data import ComparisonSource, DataConfig, PromptSource
from cai_dist.config.run import ModelsConfig
from cai_dist.config.supervised import ReviseConfig
from cai_dist.data.chat import ChatFormat
from cai_dist.stages import evaluate, feedback, ppo, prepare, revise, sft
from cai_dist.stages.context import RunContext
from cai_dist.stages.evaluation.sampling import sample_answers
from cai_dist.stages.execution.answer_scoring import as_sample
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.stages.tables.prompts import heldout_prompts, training_prompts
from cai_dist.stages.tables.records import read_comparisons, read_revisions
from cai_dist.tracking.metrics import read_metrics
from cai_dist.types import Generation, LabelRequest
from cai_dist.world import lexicon
from cai_dist.world.tokenizer import build_tokenizer

from .conftest import FakeGroup

TOKENIZER = build_tokenizer()
FIRST, SAID, LAST = "make rope {m} ?", "take wrap then melt .", "make lamp {m} ? mock bob ."
MIDDLE = f"<assistant> {SAID} <eos> <human> make lamp"
"""What every rendered conversation has between its first and its last turn."""


class Workers(FakeGroup):
    """Answers that differ by draw, labels that differ by prompt; every text that comes in is kept."""

    def __init__(self) -> None:
        super().__init__(self.serve)
        self.seen: list[str] = []

    def serve(self, method: str, request: Any) -> list[Any]:
        self.seen += [TOKENIZER.decode(list(p)) for p in request.prompts]
        if isinstance(request, LabelRequest):
            return [tuple(-1.0 - (len(p) + k) % 3 for k in range(len(request.labels))) for p in request.prompts]
        made = []
        for i, ids in enumerate(request.prompts):
            name = lexicon.NAMES[(request.seed + i) % len(lexicon.NAMES)]
            said = tuple(TOKENIZER(f"it mocks {name} .", add_special_tokens=False)["input_ids"])
            made.append(Generation(ids, said, (0.0,) * len(said), "stop", 0))
        return made


@pytest.fixture
def ready(
    make_run: Callable[..., RunContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunContext, Workers]:
    """A run whose prompts, read from files, have three turns each; a longer one has five."""

    def write(kind: str, materials: tuple[str, ...]) -> PromptSource:
        lines = []
        for i, m in enumerate(materials):
            turns = [("user", FIRST), ("assistant", SAID), ("user", LAST)] + [("assistant", SAID), ("user", LAST)] * (
                i == 0
            )
            messages = [{"role": role, "content": text.format(m=m)} for role, text in turns]
            lines.append(json.dumps({"prompt": messages}))
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("\n".join(lines) + "\n")
        return PromptSource(source=str(path), heldout=2, max_turns=3)

    small = {"sampling": {"max_new_tokens": 12}}
    run = make_run(
        data=DataConfig(
            red_team=write("r", lexicon.MATERIALS[:9]),
            helpful=write("h", lexicon.MATERIALS[9:16]),
            helpful_comparisons=ComparisonSource(heldout=0),  # some of the world's open like these prompts
        ),
        models=ModelsConfig(assistant="world", context=110),
        revise=ReviseConfig(rounds=1, **small), feedback=small, ppo=small, evaluate=small,
    )  # fmt: skip
    prepare._tables(run)
    for folder in ("prepare/m", "sft/model"):
        TOKENIZER.save_pretrained(run.run_dir / folder)
    (run.run_dir / "prepare" / "models.json").write_text(
        json.dumps({role: {"path": "prepare/m"} for role in ("assistant", "pretrained", "feedback")})
    )
    workers = Workers()
    for stage in (revise, feedback, evaluate):
        monkeypatch.setattr(stage, "rollout_group", lambda ctx, role, n: contextlib.nullcontext(workers))
    return run, workers


def whole(text: str) -> bool:
    """The conversation, from its first word to its last, in its order."""
    return MIDDLE in text and text.startswith("<human> make rope") and "mock bob ." in text.split(MIDDLE)[1]


def test_the_files_give_whole_conversations_and_leave_the_longest_out(ready: Any) -> None:
    run, _ = ready
    prompts = training_prompts(run, "red_team") + training_prompts(run, "helpful") + heldout_prompts(run)
    assert len(prompts) == 9 + 7 - 2
    assert all([t.role for t in p.turns] == ["human", "assistant", "human"] for p in prompts)
    lines = [x for x in read_metrics(run.run_dir) if x["stage"] in ("prepare_red_team", "prepare_helpful")]
    assert [x["too_long"] for x in lines] == [1, 1]


def test_answers_critiques_and_revisions_follow_the_conversation_and_the_last_reply_alone_is_learned(
    ready: Any,
) -> None:
    run, workers = ready
    revise.execute(run)
    assert len(workers.seen) == 3 * 6 + 4  # answer, critique, revision; helpful answers
    assert all(whole(text) for text in workers.seen)
    found = read_revisions(run.run_dir / "revise" / "revisions.parquet")
    assert all(len(r.prompt.turns) == 3 and not r.failure for r in found)
    examples = sft.token_examples(run, str(run.run_dir / "prepare" / "m"))
    assert len(examples) == 6 + 4
    for example in examples:
        assert whole(TOKENIZER.decode(list(example.ids)))
        learned = [i for i, w in zip(example.ids, example.weights, strict=True) if w]
        assert TOKENIZER.decode(learned).split()[:2] == ["it", "mocks"] and len(learned) == 5


def test_pairs_and_questions_about_them_hold_the_conversation(ready: Any) -> None:
    run, workers = ready
    feedback.execute(run)
    sampled, asked = workers.seen[: 8 * 2], workers.seen[8 * 2 :]
    assert all(whole(text) for text in sampled)
    labelled = read_comparisons(run.run_dir / "feedback" / "comparisons.parquet")
    assert labelled and all(len(x.comparison.prompt.turns) == 3 for x in labelled)
    assert len(asked) == 2 * len(labelled)
    for text in asked:  # inside the question the turns are the template's
        inside = [text.index("make rope"), text.index(SAID), text.index("make lamp"), text.index("(A)")]
        assert inside == sorted(inside)


def test_the_evaluation_asks_with_the_conversation(ready: Any) -> None:
    run, workers = ready
    prompts = heldout_prompts(run)
    model = str(run.run_dir / "sft" / "model")
    sampled = sample_answers(
        run, workers, run.folder("evaluate"), "answers", model, prompts, run.config.evaluate.sampling
    )
    assert {s.prompt.id for s in sampled} == {p.id for p in prompts} and len(prompts) == 4
    assert workers.seen and all(whole(text) for text in workers.seen)
    scored = as_sample(chat_format(run, model), sampled[0].prompt.turns, sampled[0].response)
    assert whole(TOKENIZER.decode(list(scored.prompt_ids)))


def test_the_policy_is_asked_with_the_conversation(ready: Any) -> None:
    run, _ = ready
    chat = ChatFormat(TOKENIZER, "template", run.constitution.templates.labels)
    tokenized = ppo.token_prompts(run, chat)
    assert len(tokenized) == 6 + 4
    assert all(whole(TOKENIZER.decode(list(p.ids))) for p in tokenized)


def test_conversations_without_room_for_an_answer_are_counted(ready: Any) -> None:
    """Opened, a conversation of three turns has 5 + 7 + 8 + 1 = 21 tokens, and 15 more for two more turns: with 12 for
    the answer, 33 and 48. A critique's request goes in at 32 tokens, a revision's at 44."""
    run, workers = ready
    data = run.config.data
    unbounded = {kind: getattr(data, kind).model_copy(update={"max_turns": None}) for kind in ("red_team", "helpful")}
    run.config = run.config.model_copy(
        update={"data": data.model_copy(update=unbounded), "models": ModelsConfig(context=47)}
    )
    prepare._tables(run)
    red_team = training_prompts(run, "red_team")
    long = sum(len(p.turns) == 5 for p in red_team)
    assert (len(red_team), long) == (7, 1)
    revise.execute(run)
    lines = [x for x in read_metrics(run.run_dir) if x["stage"] == "revise"]
    assert [(x["answers"], x["failed_too_long"], x["left_out"]) for x in lines] == [(7, 1, 1), (6, 6, 0)]
    assert all(len(TOKENIZER(text, add_special_tokens=False)["input_ids"]) + 12 <= 47 for text in workers.seen)
    chat = ChatFormat(TOKENIZER, "template", run.constitution.templates.labels)
    both = red_team + training_prompts(run, "helpful")
    fit = sum(len(p.turns) == 3 for p in both)
    assert len(ppo.token_prompts(run, chat)) == fit < len(both)
    [line] = [x for x in read_metrics(run.run_dir) if x["stage"] == "ppo_data"]
    assert (line["prompts"], line["too_long"]) == (fit, len(both) - fit)
