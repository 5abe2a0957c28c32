"""The Parquet tables that stages hand to each other: prompts, revisions, comparisons, as typed rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cai_dist.data.tables import read_rows, write_rows
from cai_dist.types import Comparison, Prompt, RankedAnswer, RankedQuestion, Turn

Note = Mapping[str, Any]
_PROMPT_FIELDS = [("prompt_id", pa.string()), ("turns", pa.string()), ("kind", pa.string()), ("split", pa.string())]
PROMPTS = pa.schema(_PROMPT_FIELDS)
EXPANDED = pa.schema([*_PROMPT_FIELDS, ("sample", pa.int64()), ("examples", pa.list_(pa.string()))])
REVISIONS = pa.schema(
    [
        *_PROMPT_FIELDS,
        ("round", pa.int32()),
        ("principle_id", pa.string()),
        ("critique", pa.string()),
        ("response", pa.string()),
        ("failure", pa.string()),
        ("thoughts", pa.string()),
    ]
)
COMPARISONS = pa.schema(
    [
        *_PROMPT_FIELDS,
        ("response_a", pa.string()),
        ("response_b", pa.string()),
        ("p_a", pa.float64()),
        ("p_model", pa.float64()),
        ("p_first", pa.float64()),
        ("p_second", pa.float64()),
        ("principle_id", pa.string()),
        ("source", pa.string()),
    ]
)

RANKED = pa.schema([("question_id", pa.string()), ("turns", pa.string()), ("text", pa.string()), ("score", pa.int32())])


@dataclass(frozen=True)
class Expanded:
    """A prompt that a model has written, and how it came about."""

    prompt: Prompt
    sample: int
    """Number of the sample that it is, 0-based over all samples of the stage."""
    examples: tuple[str, ...]
    """Ids of the prompts that the model was shown before it."""


@dataclass(frozen=True)
class Revision:
    """The state of one prompt's answer after a round. Round 0 is the first answer (no principle, no critique)."""

    prompt: Prompt
    round: int
    principle_id: str
    critique: str
    response: str
    failure: str
    """Empty, or why this round's text did not parse (the answer of the round before is then kept)."""
    thoughts: str = ""
    """What a reasoning model wrote before this round's text; nobody is shown it and nothing learns it."""


@dataclass(frozen=True)
class Labelled:
    """A comparison with how its label came about."""

    comparison: Comparison
    p_model: float
    """The feedback model's probability, before any control setting changed the label."""
    p_first: float
    """p(A) asked in the order (A, B)."""
    p_second: float
    """p(A) asked in the order (B, A); NaN where one order alone was asked."""


@dataclass(frozen=True)
class Sampled:
    """One answer of one model to a held-out prompt."""

    prompt: Prompt
    response: str


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Write a table of prompts, one row each, atomically."""
    write_rows(path, [_prompt_row(p) for p in prompts], PROMPTS)


def read_prompts(path: Path) -> list[Prompt]:
    """What `write_prompts` wrote. Raises DataError where the table is missing or unreadable."""
    return [_prompt(r) for r in read_rows(path)]


def write_expanded(path: Path, expanded: Sequence[Expanded], note: Note | None = None) -> None:
    """Write a table of prompts that a model has written; `read_prompts` reads the prompts alone, `note` as in
    `write_revisions`."""
    rows = [{**_prompt_row(x.prompt), "sample": x.sample, "examples": list(x.examples)} for x in expanded]
    write_rows(path, rows, _noted(EXPANDED, note))


def write_revisions(path: Path, revisions: Sequence[Revision], note: Note | None = None) -> None:
    """Write a table of revisions, one row for each prompt and round, atomically; `note` says under which constitution
    (`RunContext.constitution_note`) and goes into the file's metadata."""
    write_rows(
        path,
        [
            {
                **_prompt_row(r.prompt),
                "round": r.round,
                "principle_id": r.principle_id,
                "critique": r.critique,
                "response": r.response,
                "failure": r.failure,
                "thoughts": r.thoughts,
            }
            for r in revisions
        ],
        _noted(REVISIONS, note),
    )


def read_revisions(path: Path) -> list[Revision]:
    """What `write_revisions` wrote. Raises DataError where the table is missing or unreadable."""
    return [
        Revision(
            _prompt(r),
            r["round"],
            r["principle_id"],
            r["critique"],
            r["response"],
            r["failure"],
            r.get("thoughts") or "",
        )  # fmt: skip
        for r in read_rows(path)
    ]


def write_comparisons(path: Path, labelled: Sequence[Labelled], note: Note | None = None) -> None:
    """Write a table of comparisons with their labels, one row each, atomically; `note` as in `write_revisions`."""
    rows = []
    for x in labelled:
        c = x.comparison
        rows.append(
            {
                **_prompt_row(c.prompt),
                "response_a": c.response_a,
                "response_b": c.response_b,
                "p_a": c.p_a,
                "p_model": x.p_model,
                "p_first": x.p_first,
                "p_second": x.p_second,
                "principle_id": c.principle_id,
                "source": c.source,
            }
        )
    write_rows(path, rows, _noted(COMPARISONS, note))


def read_comparisons(path: Path) -> list[Labelled]:
    """What `write_comparisons` wrote. Raises DataError where the table is missing or unreadable."""
    return [
        Labelled(
            Comparison(_prompt(r), r["response_a"], r["response_b"], r["p_a"], r["source"], r["principle_id"]),
            r["p_model"],
            r["p_first"],
            r["p_second"],
        )
        for r in read_rows(path)
    ]


def write_ranked(path: Path, questions: Sequence[RankedQuestion]) -> None:
    """Write a table of ranked answers, one row for each answer, atomically."""
    rows = [
        {"question_id": q.id, "turns": _turns_text(q.turns), "text": answer.text, "score": answer.score}
        for q in questions
        for answer in q.answers
    ]
    write_rows(path, rows, RANKED)


def read_ranked(path: Path) -> list[RankedQuestion]:
    """What `write_ranked` wrote. Raises DataError where the table is missing or unreadable."""
    answers: dict[tuple[str, str], list[RankedAnswer]] = {}
    for r in read_rows(path):
        answers.setdefault((r["question_id"], r["turns"]), []).append(RankedAnswer(r["text"], r["score"]))
    return [RankedQuestion(name, _turns(turns), tuple(given)) for (name, turns), given in answers.items()]


def _noted(schema: pa.Schema, note: Note | None) -> pa.Schema:
    return schema if note is None else schema.with_metadata({"constitution": json.dumps(note, sort_keys=True)})


def _prompt_row(prompt: Prompt) -> dict[str, str]:
    return {"prompt_id": prompt.id, "turns": _turns_text(prompt.turns), "kind": prompt.kind, "split": prompt.split}


def _prompt(row: dict) -> Prompt:
    return Prompt(row["prompt_id"], _turns(row["turns"]), row["kind"], row["split"])


def _turns_text(turns: Sequence[Turn]) -> str:
    return json.dumps([asdict(t) for t in turns], ensure_ascii=False)


def _turns(text: str) -> tuple[Turn, ...]:
    return tuple(Turn(**t) for t in json.loads(text))
