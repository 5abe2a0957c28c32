"""A constitution as tables of text, for `cai-dist constitution show`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cai_dist.constitution.schema import Constitution


@dataclass(frozen=True, slots=True)
class TextTable:
    """`rows` have one text for each of `columns`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def headline(constitution: Constitution) -> str:
    """Name, version and hash on one line."""
    return f"{constitution.name} (version {constitution.version})  sha256 {constitution.sha256}"


def tables(constitution: Constitution) -> list[TextTable]:
    """Principles of both kinds, the templates and labels, and the worked examples in a line each."""
    templates = constitution.templates
    texts = [("comparison", templates.comparison), ("reasoning", templates.reasoning)]
    labels = [(f"label of {role}", repr(text)) for role, text in _labels(constitution).items()]
    found = [
        TextTable(
            f"critique principles ({len(constitution.critique_principles)})",
            ("id", "critique request", "revision request"),
            tuple((p.id, p.critique_request, p.revision_request) for p in constitution.critique_principles),
        ),
        TextTable(
            f"comparison principles ({len(constitution.comparison_principles)})",
            ("id", "text"),
            tuple((p.id, p.text) for p in constitution.comparison_principles),
        ),
        TextTable("templates", ("name", "text"), (*(x for x in texts if x[1]), *labels)),
        TextTable("worked examples", ("kind", "number", "of these"), _examples(constitution)),
    ]
    return [table for table in found if table.rows]


def _labels(constitution: Constitution) -> dict[str, str]:
    labels = constitution.templates.labels
    return {name: getattr(labels, name) for name in labels.__slots__}


def _examples(constitution: Constitution) -> tuple[tuple[str, str, str], ...]:
    better = Counter(e.answer for e in constitution.few_shot_comparisons)
    under = sum(bool(e.principle) for e in constitution.few_shot_comparisons)
    rows = (
        ("critiques", len(constitution.few_shot_critiques), "answer, critique and revision"),
        (
            "comparisons",
            len(constitution.few_shot_comparisons),
            f"{better['A']} with A better, {better['B']} with B; {under} under a principle of their own",
        ),
        ("comparisons with reasoning", len(constitution.few_shot_reasoning), "step by step"),
    )
    return tuple((kind, str(number), what) for kind, number, what in rows if number)
