"""Multiple-choice evaluation in the manner of HHH (2112.00861): a model is asked nothing; the option that it finds
likeliest as an answer is its choice."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cai_dist.data.choices import load_choice_set
from cai_dist.errors import DataError
from cai_dist.stages.context import RunContext, model_settings
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.stages.execution.generation import open_shards
from cai_dist.stages.execution.reuse import model_hash, reuse_from
from cai_dist.stages.tables.intervals import Figure, pooled_proportion
from cai_dist.tracking.atomic import sha256_json
from cai_dist.types import ChoiceQuestion, LabelRequest, Prompt

if TYPE_CHECKING:
    from cai_dist.cluster.work_queue import WorkQueue

SCHEMA = pa.schema([("id", pa.string()), ("logprobs", pa.list_(pa.float64())), ("tokens", pa.list_(pa.int32()))])
SHORT = 4
"""Tokens of an option, its end included, that is a label rather than an answer."""
PIECE = 64
"""Questions of one durable file."""
_KIND = re.compile(r"(?!line-)(.+)-\d+")
ChoiceRow = dict[str, Any]
Credits = list[tuple[Prompt, float]]


def multiple_choice(
    ctx: RunContext, group: WorkQueue, folder: Path, models: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """For each file of `evaluate.multiple_choice`: `questions`, `skipped` records, `chance` (accuracy of guessing) and
    `models`, each with `accuracy` (by the mean log-probability of an option's tokens), `accuracy_raw` (by their sum),
    both for each of `kinds` where ids say kinds (`honest-3`), `option_mass`, the mean probability of all options of a
    question together (tiny where they are sentences), and `too_long` questions left out. Raises DataError."""
    found: dict[str, dict[str, Any]] = {}
    for number, source in enumerate(ctx.config.evaluate.multiple_choice):
        questions, skipped = questions_of(ctx, source)
        asked = {
            name: _ask(ctx, group, folder / f"choices-{number}-{name}", questions, model)
            for name, model in models.items()
        }
        found[source] = {
            "questions": len(questions),
            "skipped": skipped,
            "chance": sum(_credit(q, [0.0] * len(q.options)) for q in questions) / len(questions),
            "models": {name: accuracies(questions, rows) for name, rows in asked.items()},
        }
        for name, rows in asked.items():
            mass = found[source]["models"][name]["option_mass"]
            short = all(n <= SHORT for row in rows for n in row["tokens"])
            if short and mass is not None and mass < ctx.config.feedback.min_option_mass:
                ctx.console.warn(
                    f"{source}: {name} gives the options {mass:.2g} of its probability: it answers otherwise, and its "
                    "accuracy is one of accidents; ask for the label in the question, or give whole answers as options"
                )
    return found


def questions_of(ctx: RunContext, source: str) -> tuple[list[ChoiceQuestion], int]:
    """The questions of one source and how many records were left out. Raises DataError."""
    if source != "world":
        made = load_choice_set(source)
        return list(made.questions), made.skipped
    from cai_dist.world.choices import choice_questions
    from cai_dist.world.tables import World

    return choice_questions(World(ctx.config.world_seed), ctx.config.seed), 0


def accuracies(questions: Sequence[ChoiceQuestion], rows: Sequence[ChoiceRow]) -> dict[str, Any]:
    """Accuracies of `multiple_choice`; `rows` hold each option's log-probability and tokens, none where it was too
    long. Of each figure `n` counts questions; the interval allows for several about the same text."""
    kinds: dict[str, dict[str, Credits]] = defaultdict(lambda: {"accuracy": [], "accuracy_raw": []})
    too_long, masses = 0, []
    for question, row in zip(questions, rows, strict=True):
        if not row["logprobs"]:
            too_long += 1
            continue
        masses.append(sum(map(math.exp, row["logprobs"])))
        means = [p / n for p, n in zip(row["logprobs"], row["tokens"], strict=True)]
        asked = Prompt(question.id, question.turns, "helpful")
        for kind in dict.fromkeys(("", kind_of(question))):
            kinds[kind]["accuracy"].append((asked, _credit(question, means)))
            kinds[kind]["accuracy_raw"].append((asked, _credit(question, row["logprobs"])))

    def figures(credits: Mapping[str, Credits]) -> dict[str, Figure]:
        return {name: {**pooled_proportion(found), "n": len(found)} for name, found in credits.items()}

    whole = figures(kinds[""])
    mass = fmean(masses) if masses else None
    return {
        **whole,
        "option_mass": mass,
        "too_long": too_long,
        "kinds": {kind: figures(c) for kind, c in kinds.items() if kind},
    }


def kind_of(question: ChoiceQuestion) -> str:
    """What the question's id says of its kind: `honest` of `honest-3`; empty where it says nothing."""
    match = _KIND.fullmatch(question.id)
    return match[1] if match else ""


def _credit(question: ChoiceQuestion, preferences: Sequence[float]) -> float:
    """1 where the option most preferred has the best score; a share where several are preferred as much."""
    most, best = max(preferences), max(question.scores)
    chosen = [score for score, p in zip(question.scores, preferences, strict=True) if p == most]
    return sum(score == best for score in chosen) / len(chosen)


def _ask(
    ctx: RunContext, group: WorkQueue, folder: Path, questions: Sequence[ChoiceQuestion], model: str
) -> list[ChoiceRow]:
    """Log-probability (nats) and tokens of every option, end token included, in order; what is in `folder` is read,
    what an earlier evaluation asked of the same model is taken over."""
    chat = chat_format(ctx, model)
    pieces = [questions[i : i + PIECE] for i in range(0, len(questions), PIECE)]
    asked_of = {"model": model_hash(model), **model_settings(ctx.config)}
    asks = [
        [
            [q.id, list(chat.prompt_ids(q.turns)), *(list(chat.example(q.turns, o).ids) for o in q.options)]
            for q in piece
        ]
        for piece in pieces
    ]
    reuse_from(ctx, folder.parent, folder.name, {"asks": [ask for piece in asks for ask in piece], **asked_of})
    shards = open_shards(ctx, folder, [sha256_json({"asks": piece, **asked_of}) for piece in asks])
    rows, requests = _requests(ctx, shards.missing(), pieces, model, chat)
    left = {i: sum(piece == i for piece, _ in requests) for i in rows}
    with ctx.console.task(folder.name, total=len(questions), unit="questions") as task:

        def over(i: int) -> None:
            shards.write(i, rows[i], SCHEMA)
            task.advance(len(pieces[i]))
            ctx.check_stop()

        task.advance(len(questions) - sum(len(pieces[i]) for i in rows))
        for i in [i for i, count in left.items() if not count]:
            over(i)
        label = f"{folder.parent.name}: {folder.name}"
        named = {f"question {i * PIECE + place}": (i, place) for i, place in requests}
        for name, [logprobs] in group.map(label, "score_labels", dict(zip(named, requests.values(), strict=True))):
            i, place = named[name]
            if any(map(math.isnan, logprobs)):
                raise DataError(f"{label}: {name}: an option's log-probability is no number; the weights are broken")
            rows[i][place]["logprobs"] = list(logprobs)
            left[i] -= 1
            if not left[i]:
                over(i)
    return shards.rows()


def _requests(
    ctx: RunContext, missing: Collection[int], pieces: Sequence[Sequence[ChoiceQuestion]], model: str, chat: Any
) -> tuple[dict[int, list[ChoiceRow]], dict[tuple[int, int], LabelRequest]]:
    """Piece -> rows still without log-probabilities, of the pieces that are missing; (piece, place in it) -> request,
    of the questions that fit into the context."""
    rows: dict[int, list[ChoiceRow]] = {}
    requests: dict[tuple[int, int], LabelRequest] = {}
    for i in sorted(missing):
        rows[i] = []
        for place, question in enumerate(pieces[i]):
            prompt = chat.prompt_ids(question.turns)
            options = tuple(chat.example(question.turns, option).ids[len(prompt) :] for option in question.options)
            rows[i].append({"id": question.id, "logprobs": [], "tokens": [len(ids) for ids in options]})
            if len(prompt) + max(len(ids) for ids in options) <= ctx.config.models.context:
                requests[i, place] = LabelRequest((prompt,), options, model)
    return rows, requests
